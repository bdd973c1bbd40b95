// Shapes and dtypes of the dispatcher operations, for torch.compile, torch.export and the meta
// device.
#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/detail/convolution.h>
#include <te_int8/operators.h>

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using Codes = std::tuple<Tensor, Tensor>;
using OptionalTensor = std::optional<Tensor>;
using OptionalType = std::optional<at::ScalarType>;

Codes quantize_rows_meta(const Tensor& x, std::string_view granularity) {
  detail::check_float("quantize_rows", "x", x);
  const auto options = x.options();
  auto codes = at::empty_symint(x.sym_sizes(), options.dtype(at::kChar));
  if (detail::is_per_tensor("quantize_rows", granularity)) {
    return {codes, at::empty({1}, options.dtype(at::kFloat))};
  }
  TORCH_CHECK(
      x.dim() >= 1, "te_int8::quantize_rows: expected x with at least 1 dimension, got a scalar");
  const auto rows = x.sym_sizes().slice(0, x.dim() - 1);
  return {codes, at::empty_symint(rows, options.dtype(at::kFloat))};
}

Codes transposed_codes_meta(const Tensor& x) {
  return {
      at::empty_symint({x.sym_size(1), x.sym_size(0)}, x.options().dtype(at::kChar)),
      at::empty_symint({x.sym_size(1)}, x.options().dtype(at::kFloat))};
}

Codes quantize_columns_meta(const Tensor& x) {
  detail::check_float("quantize_columns", "x", x);
  detail::check_dim("quantize_columns", "x", x, 2);
  return transposed_codes_meta(x);
}

Tensor column_sums_meta(const Tensor& x) {
  detail::check_float("column_sums", "x", x);
  detail::check_dim("column_sums", "x", x, 2);
  return at::empty_symint({x.sym_size(1)}, x.options().dtype(at::kFloat));
}

ops::CodesOfBoth quantize_rows_and_columns_meta(const Tensor& x, bool column_sums) {
  detail::check_float("quantize_rows_and_columns", "x", x);
  detail::check_dim("quantize_rows_and_columns", "x", x, 2);
  const auto sums = at::empty_symint({column_sums ? x.sym_size(1) : c10::SymInt(0)}, x.options().dtype(at::kFloat));
  return std::tuple_cat(quantize_rows_meta(x, "row"), transposed_codes_meta(x), std::tuple(sums));
}

Codes requantize_columns_meta(const Tensor& codes, const Tensor& scales) {
  detail::check_int8("requantize_columns", "codes", codes);
  detail::check_dim("requantize_columns", "codes", codes, 2);
  detail::check_scales("requantize_columns", "scales", scales, codes.sym_size(0), codes);
  return transposed_codes_meta(codes);
}

Tensor dequantize_meta(const Tensor& codes, const Tensor& scales, OptionalType out_dtype) {
  const auto dtype = detail::check_dequantize(codes, scales, out_dtype);
  return at::empty_symint(codes.sym_sizes(), codes.options().dtype(dtype));
}

Tensor scaled_mm_meta(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales,
    const OptionalTensor& b_scales, const OptionalTensor& bias, OptionalType out_dtype) {
  const auto dtype = detail::check_scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  return at::empty_symint({a.sym_size(0), b.sym_size(0)}, a.options().dtype(dtype));
}

void add_scaled_mm_meta_(
    Tensor& self, const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales) {
  detail::check_add_scaled_mm(self, a, b, a_scales, b_scales);
}

Tensor scaled_convolution_meta(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    int64_t groups, OptionalType out_dtype) {
  const detail::ConvolutionGeometry geometry{stride.vec(), padding.vec(), dilation.vec(), groups};
  const auto dtype = detail::check_scaled_convolution(a, b, a_scales, b_scales, bias, geometry, out_dtype);
  return at::empty(
      geometry.result_sizes(a.sizes(), b.sizes()), a.options().dtype(dtype).memory_format(a.suggest_memory_format()));
}

Tensor linear_meta(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool, bool, bool,
    std::string_view x_granularity, std::string_view weight_granularity, OptionalType out_dtype) {
  const auto dtype = detail::check_linear(
      x, weight, bias, x_granularity, weight_granularity, out_dtype);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options().dtype(dtype));
}

Tensor linear_prequantized_meta(
    const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& bias,
    const OptionalTensor& x_scales, OptionalType out_dtype) {
  const auto dtype = detail::check_linear_prequantized(x, codes, scales, bias, x_scales, out_dtype);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = codes.sym_size(0);
  return at::empty_symint(sizes, x.options().dtype(dtype));
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, Meta, m) {
  m.impl("quantize_rows", TORCH_FN(quantize_rows_meta));
  m.impl("quantize_columns", TORCH_FN(quantize_columns_meta));
  m.impl("column_sums", TORCH_FN(column_sums_meta));
  m.impl("quantize_rows_and_columns", TORCH_FN(quantize_rows_and_columns_meta));
  m.impl("requantize_columns", TORCH_FN(requantize_columns_meta));
  m.impl("dequantize", TORCH_FN(dequantize_meta));
  m.impl("scaled_mm", TORCH_FN(scaled_mm_meta));
  m.impl("add_scaled_mm_", TORCH_FN(add_scaled_mm_meta_));
  m.impl("scaled_convolution", TORCH_FN(scaled_convolution_meta));
  m.impl("linear", TORCH_FN(linear_meta));
  m.impl("linear_prequantized", TORCH_FN(linear_prequantized_meta));
}

}  // namespace te_int8::inline v0
