// Registration of the dispatcher operations: schemas, the reference for every device, shapes for Meta,
// autograd and autocast. A fast back end registers under its device's key.
#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/detail/quantized_layer.h>
#include <te_int8/number_format.h>

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using Codes = std::tuple<Tensor, Tensor>;
using OptionalTensor = std::optional<Tensor>;
using OptionalType = std::optional<at::ScalarType>;

Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

Precision precision(bool int8) { return int8 ? Precision::Int8 : Precision::Full; }

detail::LinearConfig linear_config(
    bool int8_output, bool int8_grad_input, bool int8_grad_weight, std::string_view x_granularity,
    std::string_view weight_granularity) {
  const auto granularity = [](std::string_view name) {
    return detail::is_per_tensor("linear", name) ? Granularity::per_tensor() : Granularity::per_row();
  };
  return detail::LinearConfig(Recipe()
                                  .output(precision(int8_output))
                                  .grad_input(precision(int8_grad_input))
                                  .grad_weight(precision(int8_grad_weight))
                                  .activations(granularity(x_granularity))
                                  .weights(granularity(weight_granularity)));
}

// ---- te_int8::linear -------------------------------------------------------------------------------

at::ScalarType check_linear(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, OptionalType out_dtype) {
  constexpr auto op = "linear";
  detail::check_float(op, "x", x);
  detail::check_float(op, "weight", weight);
  detail::check_dim(op, "weight", weight, 2);
  TORCH_CHECK(
      x.dim() >= 1 && x.sym_size(-1) == weight.sym_size(1), "te_int8::linear: expected x [*, ",
      weight.sym_size(1), "] for weight ", weight.sym_sizes(), ", got ", x.sym_sizes());
  TORCH_CHECK(
      x.device() == weight.device(), "te_int8::linear: expected weight on ", x.device(),
      " like x, got ", weight.device());
  TORCH_CHECK(
      out_dtype || x.scalar_type() == weight.scalar_type(),
      "te_int8::linear: expected weight of ", x.scalar_type(), " like x, got ", weight.scalar_type(),
      "; give out_dtype to mix them");
  if (bias) detail::check_bias(op, *bias, weight.sym_size(0), x.device());
  const auto dtype = out_dtype.value_or(x.scalar_type());
  detail::check_out_dtype(op, dtype);
  return dtype;
}

Tensor linear(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool int8_output,
    bool int8_grad_input, bool int8_grad_weight, std::string_view x_granularity,
    std::string_view weight_granularity, OptionalType out_dtype) {
  const auto dtype = check_linear(x, weight, bias, out_dtype);
  const auto config = linear_config(
      int8_output, int8_grad_input, int8_grad_weight, x_granularity, weight_granularity);
  return detail::call_linear(
      x, weight, or_undefined(bias), {.config = config, .out_dtype = dtype});
}

Tensor linear_meta(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool, bool, bool,
    std::string_view, std::string_view, OptionalType out_dtype) {
  const auto dtype = check_linear(x, weight, bias, out_dtype);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options().dtype(dtype));
}

// ---- te_int8::linear_prequantized ------------------------------------------------------------------

at::ScalarType check_linear_prequantized(
    const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& bias,
    const OptionalTensor& x_scales, OptionalType out_dtype) {
  constexpr auto op = "linear_prequantized";
  detail::check_int8(op, "codes", codes);
  detail::check_dim(op, "codes", codes, 2);
  detail::check_scales(op, "scales", scales, codes.sym_size(0), codes);
  TORCH_CHECK(
      x.dim() >= 1 && x.sym_size(-1) == codes.sym_size(1),
      "te_int8::linear_prequantized: expected x [*, ", codes.sym_size(1), "] for codes ",
      codes.sym_sizes(), ", got ", x.sym_sizes());
  TORCH_CHECK(
      x.device() == codes.device(), "te_int8::linear_prequantized: expected x on ", codes.device(),
      " like codes, got ", x.device());
  TORCH_CHECK(
      !(at::GradMode::is_enabled() && (scales.requires_grad() || (x_scales && x_scales->requires_grad()))),
      "te_int8::linear_prequantized: expected scales without requires_grad: codes and their scales are "
      "constants");
  if (x.scalar_type() == at::kChar) {
    TORCH_CHECK(
        x_scales.has_value(), "te_int8::linear_prequantized: expected x_scales with int8 x, got none");
    const auto rows = x.sym_sizes().slice(0, x.dim() - 1);
    TORCH_CHECK_TYPE(
        x_scales->scalar_type() == at::kFloat && x_scales->device() == x.device(),
        "te_int8::linear_prequantized: expected x_scales of float on ", x.device(), ", got ",
        x_scales->scalar_type(), " on ", x_scales->device());
    TORCH_CHECK(
        x_scales->sym_sizes() == rows || (x_scales->dim() == 1 && x_scales->sym_size(0) == 1),
        "te_int8::linear_prequantized: expected x_scales of shape ", rows, " or [1], got ",
        x_scales->sym_sizes());
  } else {
    detail::check_float(op, "x", x);
    TORCH_CHECK(
        !x_scales.has_value(),
        "te_int8::linear_prequantized: expected no x_scales with x of ", x.scalar_type(),
        " (it is quantized here), got some");
  }
  if (bias) detail::check_bias(op, *bias, codes.sym_size(0), x.device());
  const auto dtype =
      out_dtype.value_or(x.scalar_type() == at::kChar ? at::kFloat : x.scalar_type());
  detail::check_out_dtype(op, dtype);
  return dtype;
}

Tensor linear_prequantized(
    const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& bias,
    const OptionalTensor& x_scales, OptionalType out_dtype) {
  using detail::Operand;
  using detail::OperandForm;
  const auto dtype = check_linear_prequantized(x, codes, scales, bias, x_scales, out_dtype);
  const auto form = [](const Tensor& s) {
    return s.dim() == 1 && s.sym_size(0) == 1 ? OperandForm::TensorCodes : OperandForm::RowCodes;
  };
  detail::LinearCall call{.config = {}, .out_dtype = dtype};
  call.weight = std::make_shared<Operand>(codes, scales, form(scales));
  if (x_scales) call.x = std::make_shared<Operand>(x, *x_scales, form(*x_scales));
  return detail::call_linear(x, Tensor(), or_undefined(bias), std::move(call));
}

Tensor linear_prequantized_meta(
    const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& bias,
    const OptionalTensor& x_scales, OptionalType out_dtype) {
  const auto dtype = check_linear_prequantized(x, codes, scales, bias, x_scales, out_dtype);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = codes.sym_size(0);
  return at::empty_symint(sizes, x.options().dtype(dtype));
}

// ---- Shapes of the others --------------------------------------------------------------------------

Codes quantize_rows_meta(const Tensor& x, std::string_view granularity) {
  detail::check_float("quantize_rows", "x", x);
  const auto options = x.options();
  auto codes = at::empty_symint(x.sym_sizes(), options.dtype(at::kChar));
  if (detail::is_per_tensor("quantize_rows", granularity)) {
    return {codes, at::empty({1}, options.dtype(at::kFloat))};
  }
  TORCH_CHECK(x.dim() >= 1, "te_int8::quantize_rows: expected x with at least 1 dimension, got a scalar");
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

Codes requantize_columns_meta(const Tensor& codes, const Tensor& scales) {
  detail::check_int8("requantize_columns", "codes", codes);
  detail::check_dim("requantize_columns", "codes", codes, 2);
  detail::check_scales("requantize_columns", "scales", scales, codes.sym_size(0), codes);
  return transposed_codes_meta(codes);
}

Tensor scaled_mm_meta(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, OptionalType out_dtype) {
  const auto dtype = detail::check_scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  return at::empty_symint({a.sym_size(0), b.sym_size(0)}, a.options().dtype(dtype));
}

// ---- Operations without a gradient -----------------------------------------------------------------

template <typename... Tensors>
void forbid_gradient(const char* op, const Tensors&... tensors) {
  const auto requires_grad = [](const auto& tensor) {
    if constexpr (std::is_same_v<std::decay_t<decltype(tensor)>, Tensor>) {
      return tensor.requires_grad();
    } else {
      return tensor.has_value() && tensor->requires_grad();
    }
  };
  TORCH_CHECK(
      !(at::GradMode::is_enabled() && (requires_grad(tensors) || ...)), "te_int8::", op,
      ": expected inputs without requires_grad (rounding has no gradient), got one with; use "
      "te_int8::linear, detach() or torch::NoGradGuard");
}

Codes quantize_rows_autograd(const Tensor& x, std::string_view granularity) {
  forbid_gradient("quantize_rows", x);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::quantize_rows(x, granularity);
}

Codes quantize_columns_autograd(const Tensor& x) {
  forbid_gradient("quantize_columns", x);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::quantize_columns(x);
}

Codes requantize_columns_autograd(const Tensor& codes, const Tensor& scales) {
  forbid_gradient("requantize_columns", scales);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::requantize_columns(codes, scales);
}

Tensor scaled_mm_autograd(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, OptionalType out_dtype) {
  forbid_gradient("scaled_mm", a_scales, b_scales, bias);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
}

// ---- Autocast: the result has the autocast dtype, the operands are quantized as they are ------------

template <at::DeviceType device>
Tensor linear_autocast(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool int8_output,
    bool int8_grad_input, bool int8_grad_weight, std::string_view x_granularity,
    std::string_view weight_granularity, OptionalType out_dtype) {
  const auto dtype = out_dtype.value_or(detail::output_dtype(x));
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("te_int8::linear", "")
                             .typed<decltype(linear)>();
  return op.call(
      x, weight, bias, int8_output, int8_grad_input, int8_grad_weight, x_granularity,
      weight_granularity, dtype);
}

template <at::DeviceType device>
Tensor linear_prequantized_autocast(
    const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& bias,
    const OptionalTensor& x_scales, OptionalType out_dtype) {
  const auto dtype = out_dtype.value_or(
      x.scalar_type() == at::kDouble ? at::kDouble : at::autocast::get_autocast_dtype(device));
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("te_int8::linear_prequantized", "")
                             .typed<decltype(linear_prequantized)>();
  return op.call(x, codes, scales, bias, x_scales, dtype);
}

template <at::DeviceType device>
void register_autocast(torch::Library& library) {
  library.impl("linear", TORCH_FN(linear_autocast<device>));
  library.impl("linear_prequantized", TORCH_FN(linear_prequantized_autocast<device>));
}

}  // namespace

TORCH_LIBRARY(te_int8, m) {
  m.def("quantize_rows(Tensor x, *, str granularity=\"row\") -> (Tensor codes, Tensor scales)");
  m.def("quantize_columns(Tensor x) -> (Tensor codes_t, Tensor scales)");
  m.def("requantize_columns(Tensor codes, Tensor scales) -> (Tensor codes_t, Tensor scales_t)");
  m.def(
      "scaled_mm(Tensor a, Tensor b, Tensor? a_scales=None, Tensor? b_scales=None, Tensor? bias=None, "
      "*, ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias=None, *, bool int8_output=True, bool "
      "int8_grad_input=False, bool int8_grad_weight=False, str x_granularity=\"row\", str "
      "weight_granularity=\"row\", ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "linear_prequantized(Tensor x, Tensor codes, Tensor scales, Tensor? bias=None, *, Tensor? "
      "x_scales=None, ScalarType? out_dtype=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(te_int8, CompositeExplicitAutograd, m) {
  m.impl("quantize_rows", TORCH_FN(reference::quantize_rows));
  m.impl("quantize_columns", TORCH_FN(reference::quantize_columns));
  m.impl("requantize_columns", TORCH_FN(reference::requantize_columns));
  m.impl("scaled_mm", TORCH_FN(reference::scaled_mm));
  m.impl("linear", TORCH_FN(linear));
  m.impl("linear_prequantized", TORCH_FN(linear_prequantized));
}

TORCH_LIBRARY_IMPL(te_int8, Meta, m) {
  m.impl("quantize_rows", TORCH_FN(quantize_rows_meta));
  m.impl("quantize_columns", TORCH_FN(quantize_columns_meta));
  m.impl("requantize_columns", TORCH_FN(requantize_columns_meta));
  m.impl("scaled_mm", TORCH_FN(scaled_mm_meta));
  m.impl("linear", TORCH_FN(linear_meta));
  m.impl("linear_prequantized", TORCH_FN(linear_prequantized_meta));
}

TORCH_LIBRARY_IMPL(te_int8, Autograd, m) {
  m.impl("quantize_rows", TORCH_FN(quantize_rows_autograd));
  m.impl("quantize_columns", TORCH_FN(quantize_columns_autograd));
  m.impl("requantize_columns", TORCH_FN(requantize_columns_autograd));
  m.impl("scaled_mm", TORCH_FN(scaled_mm_autograd));
  m.impl("linear", TORCH_FN(linear));
  m.impl("linear_prequantized", TORCH_FN(linear_prequantized));
}

TORCH_LIBRARY_IMPL(te_int8, AutocastCPU, m) { register_autocast<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(te_int8, AutocastCUDA, m) { register_autocast<at::kCUDA>(m); }
TORCH_LIBRARY_IMPL(te_int8, AutocastXPU, m) { register_autocast<at::kXPU>(m); }
TORCH_LIBRARY_IMPL(te_int8, AutocastMPS, m) { register_autocast<at::kMPS>(m); }

}  // namespace te_int8::inline v0
