// The quantized convolution as one autograd function, by straight-through estimation: the forward convolves codes, and
// the backward is that of a plain convolution of the dequantized codes, in full precision.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include <te_int8/detail/convolution.h>
#include <te_int8/linear_function.h>

namespace te_int8::inline v0::detail {

/// One call of a quantized convolution of x [N,C,*] with a weight [O,C/groups,*].
struct ConvolutionCall {
  ConvolutionGeometry geometry;
  at::ScalarType out_dtype;
  std::shared_ptr<Operand> x, weight;  ///< SampleCodes, or with one scale
  at::Tensor weight_scales;            ///< [O] or [1]: the weight's, perhaps with a batch norm in them
  GradientCount gradients = nullptr;   ///< of the weight
  std::weak_ptr<CodesInUse> activations = {};
};

/// as_samples undone: [N, * x C] -> [N,C,*], in channels-last memory.
inline at::Tensor from_samples(const at::Tensor& matrix, at::IntArrayRef sizes) {
  return matrix.view(channels_last_sizes(sizes)).movedim(-1, 1);
}

inline at::Tensor convolve_codes(
    const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ConvolutionCall& call) {
  const auto& geometry = call.geometry;
  const auto codes = from_samples(call.x->data(), x.sizes());
  // As LibTorch's: channels last where x or the weight has them last.
  const auto of_x = x.suggest_memory_format();
  const auto format = of_x == at::MemoryFormat::Contiguous ? weight.suggest_memory_format() : of_x;
  if (can_pack_windows(weight.sizes())) {
    if (const auto packed = call.weight->packed(packing_of(weight.sizes(), geometry)); packed.defined()) {
      return scaled_convolution_packed(
          codes, packed, weight.sizes(), call.x->scale_list(), call.weight_scales, as_optional(bias), geometry,
          call.out_dtype, format);
    }
  }
  return ops::scaled_convolution(
             codes, from_samples(call.weight->data(), weight.sizes()), call.x->scale_list(), call.weight_scales,
             as_optional(bias), geometry.stride, geometry.padding, geometry.dilation, geometry.groups, call.out_dtype)
      .contiguous(format);
}

class ConvolutionFunction : public torch::autograd::Function<ConvolutionFunction> {
  using AutogradContext = torch::autograd::AutogradContext;

  struct Context : torch::CustomClassHolder {
    ConvolutionGeometry geometry;
    std::vector<int64_t> x_sizes, weight_sizes;
    at::MemoryFormat x_format, weight_format;
    OperandForm x_form, weight_form;
    at::ScalarType x_dtype, weight_dtype;
    std::optional<at::ScalarType> bias_dtype;
    GradientCount gradients;
    std::weak_ptr<CodesInUse> activations;
  };
  static constexpr std::size_t kInputEdge = 0, kWeightEdge = 1, kBiasEdge = 2;

 public:
  // An absent bias comes as std::nullopt: autograd takes an undefined one for an input.
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
      ConvolutionCall call) {
    const PlainTensorOps plain;
    auto context = c10::make_intrusive<Context>();
    context->geometry = call.geometry;
    context->x_sizes = x.sizes().vec();
    context->weight_sizes = weight.sizes().vec();
    context->x_format = x.suggest_memory_format();
    context->weight_format = weight.suggest_memory_format();
    context->x_form = call.x->form();
    context->weight_form = call.weight->form();
    context->x_dtype = x.scalar_type();
    context->weight_dtype = weight.scalar_type();
    if (bias) context->bias_dtype = bias->scalar_type();
    context->gradients = call.gradients;
    context->activations = call.activations;
    auto y = convolve_codes(x, weight, bias.value_or(at::Tensor()), call);
    torch::autograd::variable_list saved(4);
    if (x.requires_grad()) {
      saved[0] = call.weight->data();
      saved[1] = call.weight->scales();
    }
    if (weight.requires_grad()) {
      saved[2] = call.x->data();
      saved[3] = call.x->scales();
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["convolution"] = c10::IValue::make_capsule(std::move(context));
    return y;
  }

  static torch::autograd::variable_list backward(
      AutogradContext* ctx, torch::autograd::variable_list gradients) {
    const auto context = c10::static_intrusive_pointer_cast<Context>(ctx->saved_data.at("convolution").toCapsule());
    const auto saved = ctx->get_saved_variables();
    const auto& dy = gradients[0];
    if (!dy.defined()) return {{}, {}, {}, {}};
    const bool second_order = at::GradMode::is_enabled();
    if (const auto activations = context->activations.lock()) activations->drop_dead();
    at::Tensor dx, dw, db;
    {
      const at::NoGradGuard no_grad;
      const PlainTensorOps plain;
      const bool wants_dx = ctx->needs_input_grad(kInputEdge), wants_dw = ctx->needs_input_grad(kWeightEdge);
      const bool wants_db = context->bias_dtype && ctx->needs_input_grad(kBiasEdge);
      const auto values = [&](const at::Tensor& data, const at::Tensor& scales, OperandForm form, at::IntArrayRef sizes) {
        if (!data.defined()) return at::empty({}, dy.options()).expand(sizes);  // only its sizes are asked for
        return from_samples(Operand(data, scales, form).dequantized(dy.scalar_type()), sizes);
      };
      const auto& geometry = context->geometry;
      std::tie(dx, dw, db) = at::convolution_backward(
          dy, values(saved[2], saved[3], context->x_form, context->x_sizes),
          values(saved[0], saved[1], context->weight_form, context->weight_sizes),
          at::OptionalIntArrayRef(std::vector<int64_t>{context->weight_sizes[0]}), geometry.stride, geometry.padding,
          geometry.dilation, /*transposed=*/false, std::vector<int64_t>(geometry.stride.size(), 0), geometry.groups,
          {wants_dx, wants_dw, wants_db});
      if (wants_dx) dx = dx.to(context->x_dtype).contiguous(context->x_format);
      if (wants_dw) {
        dw = dw.to(context->weight_dtype).contiguous(context->weight_format);
        if (context->gradients) ++*context->gradients;
      }
      if (wants_db) db = db.to(*context->bias_dtype);
    }
    if (second_order) {
      for (auto* gradient : {&dx, &dw, &db}) {
        if (gradient->defined()) forbid_second_order(*gradient, dy, "convolution");
      }
    }
    return {dx, dw, db, {}};
  }
};

/// One call, recorded for backward where grad mode asks for it.
inline at::Tensor call_convolution(
    const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, ConvolutionCall call) {
  for (const auto* operand : {&x, &weight, &bias}) forbid_forward_mode(*operand);
  if (at::GradMode::is_enabled() &&
      (x.requires_grad() || weight.requires_grad() || (bias.defined() && bias.requires_grad()))) {
    return ConvolutionFunction::apply(x, weight, as_optional(bias), std::move(call));
  }
  const PlainTensorOps plain;
  return convolve_codes(x, weight, bias, call);
}

}  // namespace te_int8::inline v0::detail
