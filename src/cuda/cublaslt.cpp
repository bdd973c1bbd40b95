#include "cublaslt.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/Exceptions.h>
#include <cublasLt.h>

#include "device.h"

namespace te_int8::cuda {
namespace {

using at::Tensor;

/// What cuBLASLt's integer kernels want of K and N, in elements, and of addresses, in bytes.
constexpr int64_t kAlignment = 16;

int64_t padded(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

/// The matrix with `rows` rows of whole kAlignment codes, zeros beyond its own.
Tensor aligned(const Tensor& codes, int64_t rows) {
  const int64_t depth = padded(codes.size(1));
  if (codes.size(0) == rows && codes.size(1) == depth && codes.is_contiguous() &&
      reinterpret_cast<uintptr_t>(codes.const_data_ptr()) % kAlignment == 0) {
    return codes;
  }
  auto result = at::zeros({rows, depth}, codes.options());
  result.narrow(0, 0, codes.size(0)).narrow(1, 0, codes.size(1)).copy_(codes);
  return result;
}

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

}  // namespace

Tensor cublaslt_sums(const Tensor& a, const Tensor& b) {
  const int64_t rows = a.size(0), columns = padded(b.size(0)), depth = padded(a.size(1));
  auto sums = at::empty({rows, columns}, a.options().dtype(at::kInt));
  auto result = sums.narrow(1, 0, b.size(0));
  if (result.numel() == 0) return result;
  if (depth == 0) return result.zero_();
  const auto left = aligned(a, rows), right = aligned(b, columns);

  // cuBLASLt thinks in columns: sums^T [N,M] = b (a^T), where b is what it calls transposed.
  const Operation operation(cublasLtMatmulDescCreate, CUBLAS_COMPUTE_32I, CUDA_R_32I);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  TORCH_CUDABLAS_CHECK(cublasLtMatmulDescSetAttribute(
      operation.get(), CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  const auto depth_of = static_cast<uint64_t>(depth), rows_of = static_cast<uint64_t>(rows),
             columns_of = static_cast<uint64_t>(columns);
  const Layout of_b(cublasLtMatrixLayoutCreate, CUDA_R_8I, depth_of, columns_of, depth);
  const Layout of_a(cublasLtMatrixLayoutCreate, CUDA_R_8I, depth_of, rows_of, depth);
  const Layout of_sums(cublasLtMatrixLayoutCreate, CUDA_R_32I, columns_of, rows_of, columns);

  auto* handle = at::cuda::getCurrentCUDABlasLtHandle();
  const auto workspace = at::cuda::getCUDABlasLtWorkspaceSize();
  const Preference preference(cublasLtMatmulPreferenceCreate);
  TORCH_CUDABLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)));
  cublasLtMatmulHeuristicResult_t choice{};
  int found = 0;
  TORCH_CUDABLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(
      handle, operation.get(), of_b.get(), of_a.get(), of_sums.get(), of_sums.get(), preference.get(), 1, &choice,
      &found));
  TORCH_CHECK(
      found > 0, "te_int8::scaled_mm: expected cuBLASLt to multiply int8 ", a.sizes(), " by ", b.sizes(),
      " on this GPU, got no algorithm");
  const int32_t one = 1, zero = 0;
  TORCH_CUDABLAS_CHECK(cublasLtMatmul(
      handle, operation.get(), &one, right.const_data_ptr(), of_b.get(), left.const_data_ptr(), of_a.get(), &zero,
      sums.data_ptr(), of_sums.get(), sums.data_ptr(), of_sums.get(), &choice.algo,
      at::cuda::getCUDABlasLtWorkspace(), workspace, c10::cuda::getCurrentCUDAStream()));
  return result;
}

}  // namespace te_int8::cuda
