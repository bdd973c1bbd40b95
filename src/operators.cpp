// Registration of the dispatcher operations: schemas, the reference for every device, autograd and
// autocast. A fast back end registers under its device's key; operators_meta.cpp has the shapes.
#include <string>

#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/detail/panel_cache.h>
#include <te_int8/detail/quantized_layer.h>
#include <te_int8/number_format.h>

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using Codes = std::tuple<Tensor, Tensor>;
using CodesOfBoth = ops::CodesOfBoth;
using OptionalTensor = std::optional<Tensor>;
using OptionalType = std::optional<at::ScalarType>;

Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

Precision precision(bool int8) { return int8 ? Precision::Int8 : Precision::Full; }

detail::LinearConfig linear_config(
    bool int8_output, bool int8_grad_input, bool int8_grad_weight, std::string_view x_granularity,
    std::string_view weight_granularity) {
  const auto granularity = [](std::string_view name) {
    return detail::is_per_tensor("linear", name) ? Granularity::per_tensor()
                                                 : Granularity::per_row();
  };
  return detail::LinearConfig(Recipe()
                                  .output(precision(int8_output))
                                  .grad_input(precision(int8_grad_input))
                                  .grad_weight(precision(int8_grad_weight))
                                  .activations(granularity(x_granularity))
                                  .weights(granularity(weight_granularity)));
}

Tensor linear(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool int8_output,
    bool int8_grad_input, bool int8_grad_weight, std::string_view x_granularity,
    std::string_view weight_granularity, OptionalType out_dtype) {
  const auto dtype = detail::check_linear(
      x, weight, bias, x_granularity, weight_granularity, out_dtype);
  const auto config = linear_config(
      int8_output, int8_grad_input, int8_grad_weight, x_granularity, weight_granularity);
  return detail::call_linear(x, weight, or_undefined(bias), {.config = config, .out_dtype = dtype});
}

Tensor linear_prequantized(
    const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& bias,
    const OptionalTensor& x_scales, OptionalType out_dtype) {
  using detail::Operand;
  using detail::OperandForm;
  const auto dtype = detail::check_linear_prequantized(x, codes, scales, bias, x_scales, out_dtype);
  const auto form = [](const Tensor& s) {
    return s.dim() == 1 && s.sym_size(0) == 1 ? OperandForm::TensorCodes : OperandForm::RowCodes;
  };
  detail::LinearCall call{.config = {}, .out_dtype = dtype};
  call.weight = std::make_shared<Operand>(codes, scales, form(scales));
  if (auto panels = detail::PanelCache::instance().get(codes); panels.defined()) {
    call.weight->expect_reuse(std::move(panels));
  }
  if (x_scales) call.x = std::make_shared<Operand>(x, *x_scales, form(*x_scales));
  return detail::call_linear(x, Tensor(), or_undefined(bias), std::move(call));
}

/// For devices that gain nothing by making both at once.
CodesOfBoth quantize_rows_and_columns(const Tensor& x, bool column_sums) {
  detail::check_float("quantize_rows_and_columns", "x", x);
  detail::check_dim("quantize_rows_and_columns", "x", x, 2);
  const auto sums = column_sums ? ops::column_sums(x) : at::empty({0}, x.options().dtype(at::kFloat));
  return std::tuple_cat(ops::quantize_rows(x), ops::quantize_columns(x), std::tuple(sums));
}

/// For devices without a kernel that does it at once.
void add_scaled_mm_(
    Tensor& self, const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales) {
  detail::check_add_scaled_mm(self, a, b, a_scales, b_scales);
  self.add_(ops::scaled_mm(a, b, a_scales, b_scales));
}

Tensor scaled_convolution(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    int64_t groups, OptionalType out_dtype) {
  return reference::scaled_convolution(
      a, b, a_scales, b_scales, bias, {stride.vec(), padding.vec(), dilation.vec(), groups}, out_dtype);
}

// ---- Operations without a gradient ----

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

Tensor column_sums_autograd(const Tensor& x) {
  forbid_gradient("column_sums", x);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::column_sums(x);
}

CodesOfBoth quantize_rows_and_columns_autograd(const Tensor& x, bool column_sums) {
  forbid_gradient("quantize_rows_and_columns", x);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::quantize_rows_and_columns(x, column_sums);
}

Codes requantize_columns_autograd(const Tensor& codes, const Tensor& scales) {
  forbid_gradient("requantize_columns", scales);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::requantize_columns(codes, scales);
}

Tensor dequantize_autograd(const Tensor& codes, const Tensor& scales, OptionalType out_dtype) {
  forbid_gradient("dequantize", scales);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::dequantize(codes, scales, out_dtype);
}

Tensor scaled_mm_autograd(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales,
    const OptionalTensor& b_scales, const OptionalTensor& bias, OptionalType out_dtype) {
  forbid_gradient("scaled_mm", a_scales, b_scales, bias);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
}

Tensor scaled_convolution_autograd(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    int64_t groups, OptionalType out_dtype) {
  forbid_gradient("scaled_convolution", a_scales, b_scales, bias);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::scaled_convolution(a, b, a_scales, b_scales, bias, stride, padding, dilation, groups, out_dtype);
}

void add_scaled_mm_autograd_(
    Tensor& self, const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales) {
  forbid_gradient("add_scaled_mm_", self, a_scales, b_scales);
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    ops::add_scaled_mm_(self, a, b, a_scales, b_scales);
  }
  if (!self.is_inference()) torch::autograd::impl::bump_version(self);
}

// ---- Autocast: the result has the autocast dtype, the operands are quantized as they are ----

Tensor linear_autocast(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool int8_output,
    bool int8_grad_input, bool int8_grad_weight, std::string_view x_granularity,
    std::string_view weight_granularity, OptionalType out_dtype) {
  const auto dtype = out_dtype.value_or(detail::output_dtype(x));
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return ops::linear(
      x, weight, bias, int8_output, int8_grad_input, int8_grad_weight, x_granularity,
      weight_granularity, dtype);
}

Tensor linear_prequantized_autocast(
    const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& bias,
    const OptionalTensor& x_scales, OptionalType out_dtype) {
  const auto dtype = out_dtype.value_or(detail::output_dtype(x));
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return ops::linear_prequantized(x, codes, scales, bias, x_scales, dtype);
}

void register_autocast(torch::Library& library) {
  library.impl("linear", TORCH_FN(linear_autocast));
  library.impl("linear_prequantized", TORCH_FN(linear_prequantized_autocast));
}

}  // namespace

c10::OperatorHandle ops::detail::find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(
      (std::string("te_int8::") + name).c_str(), "");
}

TORCH_LIBRARY(te_int8, m) {
  m.def("quantize_rows(Tensor x, *, str granularity=\"row\") -> (Tensor codes, Tensor scales)");
  m.def("quantize_columns(Tensor x) -> (Tensor codes_t, Tensor scales)");
  m.def("column_sums(Tensor x) -> Tensor");
  m.def(
      "quantize_rows_and_columns(Tensor x, *, bool column_sums=False) -> (Tensor codes, Tensor scales, Tensor codes_t, "
      "Tensor scales_t, Tensor column_sums)");
  m.def("requantize_columns(Tensor codes, Tensor scales) -> (Tensor codes_t, Tensor scales_t)");
  m.def("dequantize(Tensor codes, Tensor scales, *, ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "scaled_mm(Tensor a, Tensor b, Tensor? a_scales=None, Tensor? b_scales=None, Tensor? "
      "bias=None, "
      "*, ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "add_scaled_mm_(Tensor(a!) self, Tensor a, Tensor b, Tensor? a_scales=None, Tensor? b_scales=None) -> ()");
  m.def(
      "scaled_convolution(Tensor a, Tensor b, Tensor? a_scales, Tensor? b_scales, Tensor? bias, int[] stride, int[] "
      "padding, int[] dilation, int groups=1, *, ScalarType? out_dtype=None) -> Tensor");
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
  m.impl("column_sums", TORCH_FN(reference::column_sums));
  m.impl("quantize_rows_and_columns", TORCH_FN(quantize_rows_and_columns));
  m.impl("requantize_columns", TORCH_FN(reference::requantize_columns));
  m.impl("dequantize", TORCH_FN(reference::dequantize));
  m.impl("scaled_mm", TORCH_FN(reference::scaled_mm));
  m.impl("add_scaled_mm_", TORCH_FN(add_scaled_mm_));
  m.impl("scaled_convolution", TORCH_FN(scaled_convolution));
  m.impl("linear", TORCH_FN(linear));
  m.impl("linear_prequantized", TORCH_FN(linear_prequantized));
}

TORCH_LIBRARY_IMPL(te_int8, Autograd, m) {
  m.impl("quantize_rows", TORCH_FN(quantize_rows_autograd));
  m.impl("quantize_columns", TORCH_FN(quantize_columns_autograd));
  m.impl("column_sums", TORCH_FN(column_sums_autograd));
  m.impl("quantize_rows_and_columns", TORCH_FN(quantize_rows_and_columns_autograd));
  m.impl("requantize_columns", TORCH_FN(requantize_columns_autograd));
  m.impl("dequantize", TORCH_FN(dequantize_autograd));
  m.impl("scaled_mm", TORCH_FN(scaled_mm_autograd));
  m.impl("add_scaled_mm_", TORCH_FN(add_scaled_mm_autograd_));
  m.impl("scaled_convolution", TORCH_FN(scaled_convolution_autograd));
  m.impl("linear", TORCH_FN(linear));
  m.impl("linear_prequantized", TORCH_FN(linear_prequantized));
}

TORCH_LIBRARY_IMPL(te_int8, AutocastCPU, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(te_int8, AutocastCUDA, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(te_int8, AutocastXPU, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(te_int8, AutocastMPS, m) { register_autocast(m); }

}  // namespace te_int8::inline v0
