// te_int8::linear and te_int8::linear_prequantized as C++ functions, through the dispatcher as any other
// program would call them.
#pragma once

#include <optional>
#include <string_view>

#include <torch/torch.h>

#include <te_int8/operators.h>

#include "test_device.h"

namespace te_int8_test {

using Optional = std::optional<at::Tensor>;
using OptionalType = std::optional<at::ScalarType>;

/// The keyword arguments of te_int8::linear.
struct LinearOptions {
  bool int8_output = true, int8_grad_input = false, int8_grad_weight = false;
  std::string_view x_granularity = "row", weight_granularity = "row";
  OptionalType out_dtype = std::nullopt;
};

inline at::Tensor int8_linear(
    const at::Tensor& x, const at::Tensor& weight, const Optional& bias = {},
    const LinearOptions& options = {}) {
  return te_int8::ops::linear(
      x, weight, bias, options.int8_output, options.int8_grad_input, options.int8_grad_weight,
      options.x_granularity, options.weight_granularity, options.out_dtype);
}

inline at::Tensor int8_linear_prequantized(
    const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales, const Optional& bias = {},
    const Optional& x_scales = {}, OptionalType out_dtype = {}) {
  return te_int8::ops::linear_prequantized(x, codes, scales, bias, x_scales, out_dtype);
}

}  // namespace te_int8_test
