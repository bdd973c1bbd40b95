#include "cublaslt.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/Exceptions.h>
#include <c10/cuda/CUDAStream.h>

namespace te_int8::cuda {

using at::Tensor;

Tensor aligned_codes(const Tensor& codes, int64_t rows) {
  const int64_t depth = padded(codes.size(1));
  if (codes.size(0) == rows && codes.size(1) == depth && codes.is_contiguous() &&
      reinterpret_cast<uintptr_t>(codes.const_data_ptr()) % kAlignment == 0) {
    return codes;
  }
  auto result = at::zeros({rows, depth}, codes.options());
  result.narrow(0, 0, codes.size(0)).narrow(1, 0, codes.size(1)).copy_(codes);
  return result;
}

namespace {

/// A descriptor of cuBLASLt, destroyed with its owner.
template <typename T, cublasStatus_t (*destroy)(T)>
class Descriptor {
 public:
  template <typename Create, typename... Arguments>
  explicit Descriptor(Create create, Arguments... arguments) {
    TORCH_CUDABLAS_CHECK(create(&handle_, arguments...));
  }
  ~Descriptor() { destroy(handle_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  T get() const { return handle_; }

 private:
  T handle_ = nullptr;
};
using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Operation = Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Preference = Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

Layout layout(cudaDataType_t type, int64_t height, int64_t width) {
  return Layout(
      cublasLtMatrixLayoutCreate, type, static_cast<uint64_t>(height), static_cast<uint64_t>(width), height);
}

}  // namespace

/// cuBLASLt thinks in columns: sums^T [N,M] = b a^T, where b is what it calls transposed.
struct CublasltProduct::Descriptors {
  Operation operation{cublasLtMatmulDescCreate, CUBLAS_COMPUTE_32I, CUDA_R_32I};
  Layout b, a, sums;

  Descriptors(int64_t rows, int64_t columns, int64_t depth)
      : b(layout(CUDA_R_8I, depth, columns)),
        a(layout(CUDA_R_8I, depth, rows)),
        sums(layout(CUDA_R_32I, columns, rows)) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    TORCH_CUDABLAS_CHECK(cublasLtMatmulDescSetAttribute(
        operation.get(), CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  }
};

CublasltProduct::CublasltProduct(const Tensor& a, const Tensor& b)
    : a_(a),
      b_(aligned_codes(b, padded(b.size(0)))),
      columns_(b.size(0)),
      descriptors_(std::make_unique<Descriptors>(a.size(0), b_.size(0), a.size(1))) {}

CublasltProduct::~CublasltProduct() = default;

std::vector<Algorithm> CublasltProduct::algorithms(int most) const {
  const auto workspace = at::cuda::getCUDABlasLtWorkspaceSize();
  const Preference preference(cublasLtMatmulPreferenceCreate);
  TORCH_CUDABLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)));
  const auto alignment = static_cast<uint32_t>(kAlignment);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    TORCH_CUDABLAS_CHECK(
        cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &alignment, sizeof(alignment)));
  }
  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<std::size_t>(most));
  int count = 0;
  TORCH_CUDABLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(
      at::cuda::getCurrentCUDABlasLtHandle(), descriptors_->operation.get(), descriptors_->b.get(),
      descriptors_->a.get(), descriptors_->sums.get(), descriptors_->sums.get(), preference.get(), most, found.data(),
      &count));
  TORCH_CHECK(
      count > 0, "te_int8::scaled_mm: expected cuBLASLt to multiply int8 ", a_.sizes(), " by ", b_.sizes(),
      " on this GPU, got no algorithm");
  std::vector<Algorithm> result;
  for (int i = 0; i < count; ++i) result.push_back(found[static_cast<std::size_t>(i)].algo);
  return result;
}

bool CublasltProduct::can_use(const Algorithm& algorithm) const {
  cublasLtMatmulHeuristicResult_t result{};
  const auto status = cublasLtMatmulAlgoCheck(
      at::cuda::getCurrentCUDABlasLtHandle(), descriptors_->operation.get(), descriptors_->b.get(),
      descriptors_->a.get(), descriptors_->sums.get(), descriptors_->sums.get(), &algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= at::cuda::getCUDABlasLtWorkspaceSize();
}

Tensor CublasltProduct::sums(const Algorithm& algorithm) const {
  auto sums = at::empty({a_.size(0), b_.size(0)}, a_.options().dtype(at::kInt));
  const int32_t one = 1, zero = 0;
  TORCH_CUDABLAS_CHECK(cublasLtMatmul(
      at::cuda::getCurrentCUDABlasLtHandle(), descriptors_->operation.get(), &one, b_.const_data_ptr(),
      descriptors_->b.get(), a_.const_data_ptr(), descriptors_->a.get(), &zero, sums.data_ptr(),
      descriptors_->sums.get(), sums.data_ptr(), descriptors_->sums.get(), &algorithm,
      at::cuda::getCUDABlasLtWorkspace(), at::cuda::getCUDABlasLtWorkspaceSize(), c10::cuda::getCurrentCUDAStream()));
  return sums.narrow(1, 0, columns_);
}

}  // namespace te_int8::cuda
