// te_int8::scaled_mm on CUDA tensors.
#include <torch/library.h>

#include <te_int8/number_format.h>

#include "../../kernels/dequantize.h"
#include "cublaslt.h"
#include "device.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using cuda::OnDeviceOf, cuda::dense, cuda::leave_to_reference, cuda::type_of;
using OptionalTensor = std::optional<Tensor>;

/// The scales and the bias as kernels read them, kept alive.
class DenseEpilogue {
 public:
  DenseEpilogue(const OptionalTensor& a_scales, const OptionalTensor& b_scales, const OptionalTensor& bias) {
    if (a_scales) a_scales_ = a_scales->contiguous();
    if (b_scales) b_scales_ = b_scales->contiguous();
    if (bias) bias_ = dense(*bias);
  }
  kernels::Epilogue get() const {
    return {
        .a_scales = pointer_to(a_scales_),
        .a_step = step_of(a_scales_),
        .b_scales = pointer_to(b_scales_),
        .b_step = step_of(b_scales_),
        .bias = bias_.defined() ? bias_.const_data_ptr() : nullptr,
        .bias_type = bias_.defined() ? type_of(bias_.scalar_type()) : kernels::Type::Float};
  }

 private:
  static const float* pointer_to(const Tensor& scales) {
    return scales.defined() ? scales.const_data_ptr<float>() : nullptr;
  }
  static int64_t step_of(const Tensor& scales) { return scales.defined() && scales.size(0) != 1 ? 1 : 0; }

  Tensor a_scales_, b_scales_, bias_;
};

/// Where int32 sums could overflow: in pieces of K, added up in int64.
Tensor sums_of_pieces(const Tensor& a, const Tensor& b) {
  auto sums = at::zeros({a.size(0), b.size(0)}, a.options().dtype(at::kLong));
  for (int64_t begin = 0; begin < a.size(1); begin += detail::kMaxInt32Depth) {
    const int64_t depth = std::min(detail::kMaxInt32Depth, a.size(1) - begin);
    sums.add_(cuda::cublaslt_sums(a.narrow(1, begin, depth), b.narrow(1, begin, depth)));
  }
  return sums;
}

Tensor scaled_mm(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, std::optional<at::ScalarType> out_dtype) {
  const auto dtype = detail::check_scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  if (leave_to_reference()) return reference::scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  const OnDeviceOf device(a);
  if (a.size(1) > detail::kMaxInt32Depth) {
    return reference::epilogue(sums_of_pieces(a, b), a_scales, b_scales, bias, dtype);
  }
  const auto sums = cuda::cublaslt_sums(a, b);
  if (dtype == at::kInt) return sums.contiguous();
  auto result = at::empty(sums.sizes(), a.options().dtype(dtype == at::kDouble ? at::kFloat : dtype));
  const DenseEpilogue epilogue(a_scales, b_scales, bias);
  C10_CUDA_CHECK(kernels::dequantize(
      sums.const_data_ptr<int32_t>(), sums.stride(0), sums.size(0), sums.size(1), epilogue.get(),
      type_of(result.scalar_type()), result.mutable_data_ptr(), device.stream()));
  return result.to(dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CUDA, m) { m.impl("scaled_mm", TORCH_FN(scaled_mm)); }

}  // namespace te_int8::inline v0
