// The dispatcher operations of namespace te_int8, as C++ functions. docs/operators.md states
// shapes, dtypes and errors of each; src/operators.cpp registers them.
#pragma once

#include <optional>
#include <string_view>
#include <tuple>

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::ops {

using Codes = std::tuple<at::Tensor, at::Tensor>;

/// x [*,K], any floating dtype -> int8 codes [*,K] and fp32 scales [*]; [1] for granularity
/// "tensor".
inline Codes quantize_rows(const at::Tensor& x, std::string_view granularity = "row") {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("te_int8::quantize_rows", "")
                             .typed<Codes(const at::Tensor&, std::string_view)>();
  return op.call(x, granularity);
}

/// x [M,K] -> int8 codes [K,M] of its transpose and fp32 scales [K], one per column of x.
inline Codes quantize_columns(const at::Tensor& x) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("te_int8::quantize_columns", "")
                             .typed<Codes(const at::Tensor&)>();
  return op.call(x);
}

/// int8 codes [M,K] with fp32 scales [M] or [1] -> what quantize_columns(codes * scales) gives.
inline Codes requantize_columns(const at::Tensor& codes, const at::Tensor& scales) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("te_int8::requantize_columns", "")
                             .typed<Codes(const at::Tensor&, const at::Tensor&)>();
  return op.call(codes, scales);
}

/// a [M,K] x b [N,K] -> [M,N]: (float(sum) * a_scales[m]) * b_scales[n] + bias[n], in fp32, then
/// cast to out_dtype (fp32 by default; int32 gives the raw sums and takes no scales or bias).
inline at::Tensor scaled_mm(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales = {},
    const std::optional<at::Tensor>& b_scales = {}, const std::optional<at::Tensor>& bias = {},
    std::optional<at::ScalarType> out_dtype = {}) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("te_int8::scaled_mm", "")
          .typed<at::Tensor(
              const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
              const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
              std::optional<at::ScalarType>)>();
  return op.call(a, b, a_scales, b_scales, bias, out_dtype);
}

}  // namespace te_int8::inline v0::ops
