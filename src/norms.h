// Batch norms on GPUs.
#pragma once

#include <optional>
#include <utility>

#include <torch/types.h>

namespace te_int8::inline v0::detail {

/// The tensors of a batch norm; weight and bias may be undefined.
struct BatchNormTensors {
  const at::Tensor &mean, &variance, &weight, &bias;
  double eps;
};

/// BatchNorm::fold by one kernel; none where there is no such kernel for these tensors.
std::optional<std::pair<at::Tensor, at::Tensor>> fold_by_kernel(
    const BatchNormTensors& norm, const at::Tensor& scales, const at::Tensor& bias);

}  // namespace te_int8::inline v0::detail
