// te_int8::scaled_mm and add_scaled_mm_ on CUDA tensors.
#include <torch/library.h>

#include <te_int8/number_format.h>

#include "choose.h"
#include "cublaslt.h"
#include "device.h"
#include "epilogue.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using cuda::Candidate, cuda::DenseEpilogue, cuda::OnDeviceOf, cuda::dense, cuda::leave_to_reference, cuda::type_of;
using OptionalTensor = std::optional<Tensor>;

/// int32 [M,N] of a [M,K] x b [N,K], not necessarily contiguous.
Tensor int32_sums(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return at::zeros({a.size(0), b.size(0)}, a.options().dtype(at::kInt));
  const cuda::CublasltProduct product(cuda::aligned_codes(a, a.size(0)), cuda::aligned_codes(b, b.size(0)));
  return product.sums(product.algorithms(1).front());
}

/// Where int32 sums could overflow: in pieces of K, added up in int64.
Tensor sums_of_pieces(const Tensor& a, const Tensor& b) {
  auto sums = at::zeros({a.size(0), b.size(0)}, a.options().dtype(at::kLong));
  for (int64_t begin = 0; begin < a.size(1); begin += detail::kMaxInt32Depth) {
    const int64_t depth = std::min(detail::kMaxInt32Depth, a.size(1) - begin);
    sums.add_(int32_sums(a.narrow(1, begin, depth), b.narrow(1, begin, depth)));
  }
  return sums;
}

void dequantize(const Tensor& sums, const kernels::Epilogue& epilogue, const Tensor& out, cudaStream_t stream) {
  C10_CUDA_CHECK(kernels::dequantize(
      sums.const_data_ptr<int32_t>(), sums.stride(0), sums.size(0), sums.size(1), epilogue,
      type_of(out.scalar_type()), out.mutable_data_ptr(), stream));
}

kernels::Product product_of(const Tensor& a, const Tensor& b, const kernels::Epilogue& epilogue, const Tensor& out) {
  return {
      .a = a.const_data_ptr<int8_t>(),
      .b = b.const_data_ptr<int8_t>(),
      .m = a.size(0),
      .n = b.size(0),
      .k = a.size(1),
      .epilogue = epilogue,
      .type = type_of(out.scalar_type()),
      .out = out.mutable_data_ptr()};
}

/// Computes a product of codes, which may not be empty, by the kernel that is best at it.
void multiply(
    const Tensor& a, const Tensor& b, const kernels::Epilogue& epilogue, const Tensor& out, const OnDeviceOf& device) {
  const auto left = cuda::aligned_codes(a, a.size(0)), right = cuda::aligned_codes(b, b.size(0));
  const auto product = product_of(left, right, epilogue, out);
  const auto backend = detail::current_backend();
  const bool fits = backend != detail::Backend::Cublaslt && kernels::fits_gemms(product);
  std::optional<cuda::CublasltProduct> by_cublaslt;
  const auto cublaslt = [&]() -> cuda::CublasltProduct& {
    return by_cublaslt ? *by_cublaslt : by_cublaslt.emplace(left, right);
  };
  const auto candidates = [&] {
    std::vector<Candidate> result;
    if (fits) {
      for (const auto* gemm : cuda::gemms_for(product)) result.emplace_back(gemm);
    }
    if (result.empty() || (backend != detail::Backend::Cutlass && !cuda::kernels_are_forced())) {
      for (const auto& algorithm : cublaslt().algorithms(4)) result.emplace_back(algorithm);
    }
    return result;
  };
  const auto run = [&](const Candidate& candidate) {
    if (const auto* gemm = std::get_if<const kernels::Gemm*>(&candidate)) {
      C10_CUDA_CHECK((*gemm)->launch(product, **gemm, cuda::multiprocessors(), device.stream()));
    } else {
      // Chosen for a neighbour in its bucket, it may not do here.
      const auto& chosen = std::get<cuda::Algorithm>(candidate);
      auto& by = cublaslt();
      const auto sums = by.sums(by.can_use(chosen) ? chosen : by.algorithms(1).front());
      dequantize(sums, epilogue, out, device.stream());
    }
  };
  const auto kind = cuda::kind_of(product, out, fits);
  const auto known = cuda::chosen(kind);
  run(known ? *known : cuda::choose(kind, device.stream(), candidates(), run));
}

/// Adds a product to `out` in the epilogue of a kernel. False where none is for it: it then has to be added afterwards.
bool multiply_into(
    const Tensor& a, const Tensor& b, const kernels::Epilogue& epilogue, const Tensor& out, const OnDeviceOf& device) {
  if (detail::current_backend() == detail::Backend::Cublaslt) return false;
  const auto left = cuda::aligned_codes(a, a.size(0)), right = cuda::aligned_codes(b, b.size(0));
  auto product = product_of(left, right, epilogue, out);
  product.accumulate = true;
  return cuda::multiply_by_kernel(product, out, device.stream());
}

Tensor scaled_mm(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, std::optional<at::ScalarType> out_dtype) {
  const auto dtype = detail::check_scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  const OnDeviceOf device(a);
  if (leave_to_reference()) return reference::scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  if (a.size(1) > detail::kMaxInt32Depth) {
    return reference::epilogue(sums_of_pieces(a, b), a_scales, b_scales, bias, dtype);
  }
  if (dtype == at::kInt) return int32_sums(a, b).contiguous();
  auto result = at::empty({a.size(0), b.size(0)}, a.options().dtype(dtype == at::kDouble ? at::kFloat : dtype));
  const DenseEpilogue epilogue(a_scales, b_scales, bias);
  if (result.numel() == 0) return result.to(dtype);
  if (a.size(1) == 0) {
    dequantize(int32_sums(a, b), epilogue.get(), result, device.stream());
  } else {
    multiply(a, b, epilogue.get(), result, device);
  }
  return result.to(dtype);
}

void add_scaled_mm_(
    Tensor& self, const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales) {
  detail::check_add_scaled_mm(self, a, b, a_scales, b_scales);
  const OnDeviceOf device(a);
  const bool fits = !leave_to_reference() && self.is_contiguous() && self.scalar_type() != at::kDouble && cuda::is_plain(self) &&
                    a.size(1) <= detail::kMaxInt32Depth;
  const DenseEpilogue epilogue(a_scales, b_scales, {});
  if (fits && multiply_into(a, b, epilogue.get(), self, device)) return;
  self.add_(scaled_mm(a, b, a_scales, b_scales, {}, at::kFloat));
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CUDA, m) {
  m.impl("scaled_mm", TORCH_FN(scaled_mm));
  m.impl("add_scaled_mm_", TORCH_FN(add_scaled_mm_));
}

}  // namespace te_int8::inline v0
