// What the operations demand of their arguments, written once for every back end and for Meta.
// Sizes are symbolic so that torch.export and torch.compile can trace through.
#pragma once

#include <algorithm>
#include <optional>
#include <string_view>

#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// Beyond this K an int32 could overflow (131,071 * 128 * 128 < 2^31), so raw sums are refused.
inline constexpr int64_t kMaxInt32Depth = 131'071;

inline void check_dense(const char* op, const char* name, const at::Tensor& x) {
  TORCH_CHECK(
      !x.is_nested(), "te_int8::", op, ": expected ", name, " to be dense, got a nested tensor");
  TORCH_CHECK(
      x.layout() == at::kStrided, "te_int8::", op, ": expected ", name, " to be dense, got layout ",
      x.layout());
}

inline void check_float(const char* op, const char* name, const at::Tensor& x) {
  check_dense(op, name, x);
  TORCH_CHECK_TYPE(
      at::isFloatingType(x.scalar_type()) && x.element_size() >= 2, "te_int8::", op, ": expected ",
      name, " to be float, double, half or bfloat16, got ", x.scalar_type());
}

inline void check_int8(const char* op, const char* name, const at::Tensor& x) {
  check_dense(op, name, x);
  TORCH_CHECK_TYPE(
      x.scalar_type() == at::kChar, "te_int8::", op, ": expected ", name, " to be int8, got ",
      x.scalar_type());
}

inline void check_dim(const char* op, const char* name, const at::Tensor& x, int64_t dim) {
  TORCH_CHECK(
      x.dim() == dim, "te_int8::", op, ": expected ", name, " to have ", dim,
      " dimensions, got shape ", x.sym_sizes());
}

inline bool is_per_tensor(const char* op, std::string_view granularity) {
  TORCH_CHECK_VALUE(
      granularity == "row" || granularity == "tensor", "te_int8::", op,
      ": expected granularity \"row\" or \"tensor\", got \"", granularity, "\"");
  return granularity == "tensor";
}

/// Scales are fp32, on the device of `codes`, one for each of `rows` or one for all.
inline void check_scales(
    const char* op, const char* name, const at::Tensor& scales, const c10::SymInt& rows,
    const at::Tensor& codes) {
  TORCH_CHECK_TYPE(
      scales.scalar_type() == at::kFloat, "te_int8::", op, ": expected ", name,
      " to be float, got ", scales.scalar_type());
  TORCH_CHECK(
      scales.dim() == 1 && (scales.sym_size(0) == rows || scales.sym_size(0) == 1), "te_int8::", op,
      ": expected ", name, " of shape [", rows, "] or [1], got ", scales.sym_sizes());
  TORCH_CHECK(
      scales.device() == codes.device(), "te_int8::", op, ": expected ", name, " on ",
      codes.device(), ", got ", scales.device());
}

inline void check_bias(
    const char* op, const at::Tensor& bias, const c10::SymInt& columns, c10::Device device) {
  check_float(op, "bias", bias);
  TORCH_CHECK(
      bias.dim() == 1 && bias.sym_size(0) == columns, "te_int8::", op, ": expected bias of shape [",
      columns, "], got ", bias.sym_sizes());
  TORCH_CHECK(
      bias.device() == device, "te_int8::", op, ": expected bias on ", device, ", got ",
      bias.device());
}

inline void check_out_dtype(const char* op, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      "te_int8::", op, ": expected out_dtype float, double, half or bfloat16, got ", dtype);
}

/// Of codes [*,K]: fp32 [*], or one for all.
inline void check_scales_of_rows(
    const char* op, const char* name, const at::Tensor& scales, const at::Tensor& codes) {
  const auto rows = codes.sym_sizes().slice(0, std::max<int64_t>(codes.dim(), 1) - 1);
  TORCH_CHECK_TYPE(
      scales.scalar_type() == at::kFloat && scales.device() == codes.device(), "te_int8::", op, ": expected ", name,
      " of float on ", codes.device(), ", got ", scales.scalar_type(), " on ", scales.device());
  TORCH_CHECK(
      scales.sym_sizes() == rows || (scales.dim() == 1 && scales.sym_size(0) == 1), "te_int8::", op, ": expected ",
      name, " of shape ", rows, " or [1], got ", scales.sym_sizes());
}

/// Returns the dtype of the result.
inline at::ScalarType check_dequantize(
    const at::Tensor& codes, const at::Tensor& scales, std::optional<at::ScalarType> out_dtype) {
  constexpr auto op = "dequantize";
  check_int8(op, "codes", codes);
  TORCH_CHECK(codes.dim() >= 1, "te_int8::dequantize: expected codes with at least 1 dimension, got a scalar");
  check_scales_of_rows(op, "scales", scales, codes);
  const auto dtype = out_dtype.value_or(at::kFloat);
  check_out_dtype(op, dtype);
  return dtype;
}

/// Returns the dtype of the result.
inline at::ScalarType check_scaled_mm(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias,
    std::optional<at::ScalarType> out_dtype, const char* op = "scaled_mm") {
  check_int8(op, "a", a);
  check_int8(op, "b", b);
  check_dim(op, "a", a, 2);
  check_dim(op, "b", b, 2);
  TORCH_CHECK(
      a.sym_size(1) == b.sym_size(1), "te_int8::", op, ": expected b to have K = ", a.sym_size(1),
      " columns like a, got ", b.sym_size(1), " (b is [N,K]: do not transpose it)");
  TORCH_CHECK(
      a.device() == b.device(), "te_int8::", op, ": expected b on ", a.device(), " like a, got ",
      b.device());
  if (a_scales) check_scales(op, "a_scales", *a_scales, a.sym_size(0), a);
  if (b_scales) check_scales(op, "b_scales", *b_scales, b.sym_size(0), b);
  if (bias) check_bias(op, *bias, b.sym_size(0), a.device());
  const auto dtype = out_dtype.value_or(at::kFloat);
  if (dtype == at::kInt) {
    TORCH_CHECK(
        !a_scales && !b_scales && !bias,
        "te_int8::scaled_mm: expected no scales and no bias with out_dtype int32 (raw sums), got ",
        a_scales   ? "a_scales"
        : b_scales ? "b_scales"
                   : "bias");
    TORCH_CHECK(
        a.sym_size(1) <= kMaxInt32Depth, "te_int8::scaled_mm: expected K <= ", kMaxInt32Depth,
        " with out_dtype int32, where sums could overflow, got ", a.sym_size(1));
  } else {
    check_out_dtype(op, dtype);
  }
  return dtype;
}

inline void check_add_scaled_mm(
    const at::Tensor& self, const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales) {
  constexpr auto op = "add_scaled_mm_";
  check_scaled_mm(a, b, a_scales, b_scales, {}, at::kFloat, op);
  check_float(op, "self", self);
  check_dim(op, "self", self, 2);
  TORCH_CHECK(
      self.sym_size(0) == a.sym_size(0) && self.sym_size(1) == b.sym_size(0) && self.device() == a.device(), "te_int8::", op,
      ": expected self [", a.sym_size(0), ", ", b.sym_size(0), "] on ", a.device(), ", got ", self.sym_sizes(), " on ",
      self.device());
}

/// Returns the dtype of the result.
inline at::ScalarType check_linear(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    std::string_view x_granularity, std::string_view weight_granularity,
    std::optional<at::ScalarType> out_dtype) {
  constexpr auto op = "linear";
  is_per_tensor(op, x_granularity);
  is_per_tensor(op, weight_granularity);
  check_float(op, "x", x);
  check_float(op, "weight", weight);
  check_dim(op, "weight", weight, 2);
  TORCH_CHECK(
      x.dim() >= 1 && x.sym_size(-1) == weight.sym_size(1), "te_int8::linear: expected x [*, ",
      weight.sym_size(1), "] for weight ", weight.sym_sizes(), ", got ", x.sym_sizes());
  TORCH_CHECK(
      x.device() == weight.device(), "te_int8::linear: expected weight on ", x.device(),
      " like x, got ", weight.device());
  TORCH_CHECK(
      out_dtype || x.scalar_type() == weight.scalar_type(), "te_int8::linear: expected weight of ",
      x.scalar_type(), " like x, got ", weight.scalar_type(), "; give out_dtype to mix them");
  if (bias) check_bias(op, *bias, weight.sym_size(0), x.device());
  const auto dtype = out_dtype.value_or(x.scalar_type());
  check_out_dtype(op, dtype);
  return dtype;
}

/// Returns the dtype of the result.
inline at::ScalarType check_linear_prequantized(
    const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& x_scales,
    std::optional<at::ScalarType> out_dtype) {
  constexpr auto op = "linear_prequantized";
  check_int8(op, "codes", codes);
  check_dim(op, "codes", codes, 2);
  check_scales(op, "scales", scales, codes.sym_size(0), codes);
  TORCH_CHECK(
      x.dim() >= 1 && x.sym_size(-1) == codes.sym_size(1),
      "te_int8::linear_prequantized: expected x [*, ", codes.sym_size(1), "] for codes ",
      codes.sym_sizes(), ", got ", x.sym_sizes());
  TORCH_CHECK(
      x.device() == codes.device(), "te_int8::linear_prequantized: expected x on ", codes.device(),
      " like codes, got ", x.device());
  TORCH_CHECK(
      !(at::GradMode::is_enabled() &&
        (scales.requires_grad() || (x_scales && x_scales->requires_grad()))),
      "te_int8::linear_prequantized: expected scales without requires_grad: codes and their scales "
      "are "
      "constants");
  if (x.scalar_type() == at::kChar) {
    TORCH_CHECK(
        x_scales.has_value(),
        "te_int8::linear_prequantized: expected x_scales with int8 x, got none");
    check_scales_of_rows(op, "x_scales", *x_scales, x);
  } else {
    check_float(op, "x", x);
    TORCH_CHECK(
        !x_scales.has_value(), "te_int8::linear_prequantized: expected no x_scales with x of ",
        x.scalar_type(), " (it is quantized here), got some");
  }
  if (bias) check_bias(op, *bias, codes.sym_size(0), x.device());
  const auto dtype =
      out_dtype.value_or(x.scalar_type() == at::kChar ? at::kFloat : x.scalar_type());
  check_out_dtype(op, dtype);
  return dtype;
}

}  // namespace te_int8::inline v0::detail
