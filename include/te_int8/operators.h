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
using CodesOfBoth = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

namespace detail {
/// The registered operation te_int8::`name`. Defined in the library, so that a program that uses
/// nothing else of it is linked with it all the same.
TE_INT8_API c10::OperatorHandle find(const char* name);

/// A layer without a bias holds an undefined tensor, which the dispatcher would take for one.
inline std::optional<at::Tensor> present(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? tensor : std::nullopt;
}
}  // namespace detail

/// x [*,K], any floating dtype -> int8 codes [*,K] and fp32 scales [*]; [1] for granularity
/// "tensor".
inline Codes quantize_rows(const at::Tensor& x, std::string_view granularity = "row") {
  static const auto op = detail::find("quantize_rows").typed<Codes(const at::Tensor&, std::string_view)>();
  return op.call(x, granularity);
}

/// x [M,K] -> int8 codes [K,M] of its transpose and fp32 scales [K], one per column of x.
inline Codes quantize_columns(const at::Tensor& x) {
  static const auto op = detail::find("quantize_columns").typed<Codes(const at::Tensor&)>();
  return op.call(x);
}

/// x [M,K] -> the sums of its columns in fp32 [K], added up in an order that is always the same.
inline at::Tensor column_sums(const at::Tensor& x) {
  static const auto op = detail::find("column_sums").typed<at::Tensor(const at::Tensor&)>();
  return op.call(x);
}

/// x [M,K] -> what quantize_rows(x) and quantize_columns(x) give, of a large matrix in less time than one after the
/// other; and, where asked for, column_sums(x) (else [0]).
inline CodesOfBoth quantize_rows_and_columns(const at::Tensor& x, bool column_sums = false) {
  static const auto op =
      detail::find("quantize_rows_and_columns").typed<CodesOfBoth(const at::Tensor&, bool)>();
  return op.call(x, column_sums);
}

/// int8 codes [M,K] with fp32 scales [M] or [1] -> what quantize_columns(codes * scales) gives.
inline Codes requantize_columns(const at::Tensor& codes, const at::Tensor& scales) {
  static const auto op = detail::find("requantize_columns").typed<Codes(const at::Tensor&, const at::Tensor&)>();
  return op.call(codes, scales);
}

/// int8 codes [*,K] with fp32 scales [*] or [1] -> the values that they stand for, [*,K]: float(code) * scale, rounded once
/// to out_dtype (fp32 by default).
inline at::Tensor dequantize(
    const at::Tensor& codes, const at::Tensor& scales, std::optional<at::ScalarType> out_dtype = {}) {
  static const auto op = detail::find("dequantize").typed<at::Tensor(
      const at::Tensor&, const at::Tensor&, std::optional<at::ScalarType>)>();
  return op.call(codes, scales, out_dtype);
}

/// a [M,K] x b [N,K] -> [M,N]: (float(sum) * a_scales[m]) * b_scales[n] + bias[n], in fp32, then
/// cast to out_dtype (fp32 by default; int32 gives the raw sums and takes no scales or bias).
inline at::Tensor scaled_mm(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales = {},
    const std::optional<at::Tensor>& b_scales = {}, const std::optional<at::Tensor>& bias = {},
    std::optional<at::ScalarType> out_dtype = {}) {
  static const auto op = detail::find("scaled_mm").typed<at::Tensor(
          const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
          const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
          std::optional<at::ScalarType>)>();
  return op.call(
      a, b, detail::present(a_scales), detail::present(b_scales), detail::present(bias), out_dtype);
}

/// self [M,N] += scaled_mm(a, b, a_scales, b_scales), the sum rounded from fp32 to self's dtype, which is floating: how a gradient
/// is accumulated. On CUDA in the epilogue of the product, where self is contiguous and there is a kernel for the size, else after it.
inline void add_scaled_mm_(
    at::Tensor& self, const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales = {},
    const std::optional<at::Tensor>& b_scales = {}) {
  static const auto op = detail::find("add_scaled_mm_").typed<void(
      at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
      const std::optional<at::Tensor>&)>();
  op.call(self, a, b, detail::present(a_scales), detail::present(b_scales));
}

/// int8 codes a [N,C,*] convolved with b [O,C/groups,*], 1 to 3 spatial dimensions with one value of stride, padding (of
/// zeros) and dilation for each -> [N,O,*]: (float(sum) * a_scales[n]) * b_scales[o] + bias[o], in fp32, then cast to
/// out_dtype (fp32 by default; int32 gives the raw sums and takes no scales or bias). a_scales [N] or [1], b_scales [O]
/// or [1]; absent: 1. The result is in channels-last memory where a is, else contiguous.
inline at::Tensor scaled_convolution(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups = 1,
    std::optional<at::ScalarType> out_dtype = {}) {
  static const auto op = detail::find("scaled_convolution").typed<at::Tensor(
      const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
      const std::optional<at::Tensor>&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t,
      std::optional<at::ScalarType>)>();
  return op.call(
      a, b, detail::present(a_scales), detail::present(b_scales), detail::present(bias), stride, padding, dilation,
      groups, out_dtype);
}

/// x [*,K] W [N,K]^T + bias [N] -> [*,N], differentiable by straight-through estimation. The result
/// has x's dtype, or out_dtype; a granularity is "row" or "tensor".
inline at::Tensor linear(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {},
    bool int8_output = true, bool int8_grad_input = false, bool int8_grad_weight = false,
    std::string_view x_granularity = "row", std::string_view weight_granularity = "row",
    std::optional<at::ScalarType> out_dtype = {}) {
  static const auto op = detail::find("linear").typed<at::Tensor(
          const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, bool, bool, bool,
          std::string_view, std::string_view, std::optional<at::ScalarType>)>();
  return op.call(
      x, weight, detail::present(bias), int8_output, int8_grad_input, int8_grad_weight, x_granularity,
      weight_granularity, out_dtype);
}

/// The same with a weight that is codes already: int8 [N,K], scales fp32 [N] or [1]. x is floating
/// (quantized by row), or int8 with x_scales [*] or [1]. The result has x's dtype (fp32 for int8), or
/// out_dtype.
inline at::Tensor linear_prequantized(
    const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales,
    const std::optional<at::Tensor>& bias = {}, const std::optional<at::Tensor>& x_scales = {},
    std::optional<at::ScalarType> out_dtype = {}) {
  static const auto op =
      detail::find("linear_prequantized").typed<at::Tensor(
          const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
          const std::optional<at::Tensor>&, std::optional<at::ScalarType>)>();
  return op.call(
      x, codes, scales, detail::present(bias), detail::present(x_scales), out_dtype);
}

}  // namespace te_int8::inline v0::ops
