// The scales and the bias of a product as kernels read them.
#pragma once

#include <optional>

#include "../../kernels/dequantize.h"
#include "device.h"

namespace te_int8::cuda {

/// Keeps alive what its kernels::Epilogue points to.
class DenseEpilogue {
 public:
  using OptionalTensor = std::optional<at::Tensor>;

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
  static const float* pointer_to(const at::Tensor& scales) {
    return scales.defined() ? scales.const_data_ptr<float>() : nullptr;
  }
  static int64_t step_of(const at::Tensor& scales) { return scales.defined() && scales.size(0) != 1 ? 1 : 0; }

  at::Tensor a_scales_, b_scales_, bias_;
};

}  // namespace te_int8::cuda
