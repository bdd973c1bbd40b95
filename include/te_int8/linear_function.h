// The quantized linear layer as one autograd function, by straight-through estimation (Bengio et
// al. 2013, arXiv:1308.3432): the forward multiplies codes, and the backward is that of a plain
// linear layer whose operands are the dequantized codes.
//
//   y  = x W^T + b
//   dx = dy W^          X^, W^: the operands that the forward really used
//   dW = dy^T X^
//   db = sum dy
//
// At Precision::Int8 each operand of a backward matmul is quantized along its own reduction axis: dy
// by row for dx and by column for dW, X and W from their saved codes by requantize_columns.
//
// Both the dispatcher operation te_int8::linear and the layers of a scope come through here.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/torch.h>

#include <te_int8/detail/accumulation.h>
#include <te_int8/detail/linear_call.h>
#include <te_int8/detail/linear_context.h>

namespace te_int8::inline v0::detail {

/// Gives `gradient` a history that raises when somebody differentiates it again.
inline void forbid_second_order(at::Tensor& gradient, const at::Tensor& dy, const std::string& who) {
  auto edges = torch::autograd::get_current_node()->next_edges();
  edges.push_back(torch::autograd::impl::gradient_edge(dy));
  torch::autograd::set_history(
      gradient,
      std::make_shared<torch::autograd::Error>(
          "te_int8::" + who + ": expected a first-order backward, got a second one: straight-through gradients have no "
          "double backward",
          std::move(edges)));
}

class LinearFunction : public torch::autograd::Function<LinearFunction> {
  using AutogradContext = torch::autograd::AutogradContext;

  using Context = LinearContext;

 public:
  // Absent tensors come as std::nullopt: autograd takes an undefined one for an input.
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& given_weight,
      const std::optional<at::Tensor>& given_bias, LinearCall call) {
    const auto weight = given_weight.value_or(at::Tensor());
    const auto bias = given_bias.value_or(at::Tensor());
    const PlainTensorOps plain;
    auto context = c10::make_intrusive<Context>();
    context->config = call.config;
    context->gradients = call.gradients;
    context->activations = call.activations;
    context->observer = call.observer;
    if (call.gradients && x.requires_grad()) context->cached_weight = call.weight;
    context->x_dtype = x.scalar_type();
    if (weight.defined()) context->weight_dtype = weight.scalar_type();
    if (bias.defined()) context->bias_dtype = bias.scalar_type();

    const bool keeps_x = weight.defined() && weight.requires_grad();
    auto y = call.deferred_biases.empty() ? linear_forward(x, weight, bias, call, keeps_x) : deferred_forward(x, weight, call);

    torch::autograd::variable_list saved(kSavedX);
    if (x.requires_grad()) {
      if (!call.weight) call.weight = Operand::make(weight, context->weight_form());
      saved[0] = call.weight->data();
      saved[1] = call.weight->scales();
    }
    if (keeps_x) {
      if (!call.x) call.x = Operand::make(x, context->x_form());
      if (call.config.grad_weight == Precision::Int8) context->x_transpose = call.x->shared_transpose();
      if (const auto& source = call.x->source(); source && source->is_current()) {
        context->x_source.emplace(source->kind, source->dtype);
        saved.insert(saved.end(), source->inputs.begin(), source->inputs.end());
      } else {
        saved.insert(saved.end(), {call.x->data(), call.x->scales()});
      }
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["linear"] = c10::IValue::make_capsule(std::move(context));
    return y;
  }

  /// Makes `bias` an input of the call that gave y, whose graph is then the one of a call with a bias (Note [Deferred bias]).
  /// False where no such call without a bias is y's history, or somebody has hold of that history as it is.
  static bool add_bias_input(const at::Tensor& y, const at::Tensor& bias) {
    auto* node = dynamic_cast<torch::autograd::CppNode<LinearFunction>*>(y.grad_fn().get());
    if (node == nullptr) return false;
    const auto context = context_of(node->ctx_);
    const bool has_hooks =
        !node->tensor_pre_hooks().empty() || !node->pre_hooks().empty() || !node->post_hooks().empty();
    if (context->bias_dtype || has_hooks) return false;
    try {
      node->add_next_edge(torch::autograd::impl::gradient_edge(bias));
    } catch (const c10::Error&) {  // another node already leads to this one, or a backward has passed: nothing else tells
      return false;
    }
    context->bias_dtype = bias.scalar_type();
    node->is_variable_input_[kBiasArgument] = true;
    node->input_info_.emplace_back(bias);
    return true;
  }

  /// The codes that this backward will make, behind `node`, of its gradient; none where that is no node of this class, the backward
  /// does not come to it or does so on another stream than to the current node, or somebody may see or change the gradient on
  /// its way.
  static std::optional<WantedCodes> wanted_codes(torch::autograd::Node* node, at::ScalarType dy_dtype) {
    auto* ours = dynamic_cast<torch::autograd::CppNode<LinearFunction>*>(node);
    if (ours == nullptr || has_hooks_before(*ours) || !will_run(*ours)) return std::nullopt;
    if (ours->stream() != torch::autograd::get_current_node()->stream()) return std::nullopt;
    const auto context = context_of(ours->ctx_);
    const auto wants = [&](std::size_t edge) { return ours->task_should_compute_output(edge); };
    return context->wanted_codes(
        wants(Context::kInputEdge), context->weight_dtype && wants(Context::kWeightEdge),
        context->bias_dtype && wants(context->bias_edge()), dy_dtype);
  }
  /// Leaves codes of dy there, in a node that wants some.
  static void leave_codes(torch::autograd::Node& node, const at::Tensor& dy, CodesOfGradient codes) {
    const auto& ours = dynamic_cast<torch::autograd::CppNode<LinearFunction>&>(node);
    context_of(ours.ctx_)->leave_codes(dy, std::move(codes));
  }

  static torch::autograd::variable_list backward(
      AutogradContext* ctx, torch::autograd::variable_list gradients) {
    const auto held = context_of(*ctx);
    Context& context = *held;
    const auto saved = ctx->get_saved_variables();
    const auto& dy = gradients[0];
    if (!dy.defined()) return {{}, {}, {}, {}};
    const bool second_order = at::GradMode::is_enabled();
    if (const auto activations = context.activations.lock()) activations->drop_dead();

    at::Tensor dx, dw, db;
    {
      const at::NoGradGuard no_grad;
      const PlainTensorOps plain;
      const BackendScope same_backend(context.backend);
      const bool wants_dx = ctx->needs_input_grad(Context::kInputEdge);
      const bool wants_dw = context.weight_dtype && ctx->needs_input_grad(Context::kWeightEdge);
      const auto rows = as_rows(dy);
      const bool wants_db = context.bias_dtype && ctx->needs_input_grad(context.bias_edge());
      const auto wanted = context.wanted_codes(wants_dx, wants_dw, wants_db, rows.scalar_type());
      auto codes = codes_of(dy, rows, wanted, context);
      if (wants_dx) {
        auto sizes = dy.sym_sizes().vec();
        dx = grad_input(rows, codes.rows, context, saved[0], saved[1]);
        if (!context.observer) codes.rows.reset();
        sizes.back() = dx.sym_size(1);
        dx = dx.view_symint(sizes);
      }
      if (wants_db) {
        db = codes.column_sums.defined() ? codes.column_sums.to(*context.bias_dtype)
             : wanted.column_sums        ? bias_gradient(rows, *context.bias_dtype)
                                         : rows.sum(0, /*keepdim=*/false, *context.bias_dtype);
      }
      if (wants_dw) {
        const bool may_add = codes.columns && !second_order && !context.observer;
        const bool added = may_add && add_to_gradient(Context::kWeightEdge, [&](at::Tensor& sum) {
          add_grad_weight(sum, *codes.columns, context, saved);
        });
        if (!added) dw = grad_weight(rows, codes.columns, context, saved);
        if (context.gradients) ++*context.gradients;
      } else {
        context.take_x_transpose();
      }
      if (context.observer) context.observer->saw_backward(rows, codes.rows.get(), codes.columns.get(), dx, dw);
    }
    if (second_order) {
      for (auto* gradient : {&dx, &dw, &db}) {
        if (gradient->defined()) forbid_second_order(*gradient, dy, "linear");
      }
    } else if (dx.defined()) {
      LastGradient::of_thread().note(dx, *torch::autograd::get_current_node(), Context::kInputEdge);
    }
    return {dx, dw, db, {}};
  }

 private:
  static c10::intrusive_ptr<Context> context_of(const AutogradContext& ctx) {
    return c10::static_intrusive_pointer_cast<Context>(ctx.saved_data.at("linear").toCapsule());
  }

  /// Codes of dy, `rows` of which is [R,N]: by row for dx, by column for dW; those that came with it, or else made here. Where both
  /// are made, the sums for db come with them.
  static Operand::Both codes_of(const at::Tensor& dy, const at::Tensor& rows, const WantedCodes& wanted, Context& context) {
    if (auto left = context.take_codes(dy, wanted)) return std::move(*left);
    if (wanted.by_row && wanted.by_column) return Operand::make_both(rows, wanted.column_sums);
    return {
        wanted.by_row ? Operand::make(rows, OperandForm::RowCodes) : nullptr,
        wanted.by_column ? Operand::make(rows, OperandForm::ColumnCodes) : nullptr, {}};
  }

  /// dx = dy W^, [R,K], in INT8 where there are codes of dy.
  static at::Tensor grad_input(
      const at::Tensor& dy, const std::shared_ptr<Operand>& codes, const Context& context, const at::Tensor& data,
      const at::Tensor& scales) {
    auto weight = context.cached_weight.lock();
    if (!weight) weight = std::make_shared<Operand>(data, scales, context.weight_form());
    if (codes) return multiply_codes(*codes, *weight->transposed(), {}, context.x_dtype);
    return dy.matmul(weight->dequantized(dy.scalar_type())).to(context.x_dtype);
  }

  /// dW = dy^T X^, [N,K], likewise.
  static at::Tensor grad_weight(
      const at::Tensor& dy, const std::shared_ptr<Operand>& codes, Context& context,
      const torch::autograd::variable_list& saved) {
    if (codes) return multiply_codes(*codes, *transposed_x(context, saved), {}, *context.weight_dtype);
    const auto x = context.x_source && context.x_source->dtype == dy.scalar_type()
                       ? as_rows(source_of(context, saved).make_values())
                       : saved_x(context, saved).dequantized(dy.scalar_type());
    return dy.t().matmul(x).to(*context.weight_dtype);
  }

  /// sum += dW in INT8.
  static void add_grad_weight(
      at::Tensor& sum, const Operand& dy, Context& context, const torch::autograd::variable_list& saved) {
    const auto x = transposed_x(context, saved);
    ops::add_scaled_mm_(sum, dy.data(), x->data(), dy.scales(), x->scales());
  }

  static CodesSource source_of(const Context& context, const torch::autograd::variable_list& saved) {
    return {context.x_source->kind, context.x_source->dtype, {saved.begin() + kSavedX, saved.end()}};
  }

  /// X as the forward held it.
  static Operand saved_x(const Context& context, const torch::autograd::variable_list& saved) {
    const auto first = saved.begin() + kSavedX;
    if (!context.x_source) return Operand(first[0], first[1], context.x_form());
    const auto [codes, scales] = source_of(context, saved).make();
    return Operand(codes, scales, OperandForm::RowCodes);
  }

  static std::shared_ptr<Operand> transposed_x(Context& context, const torch::autograd::variable_list& saved) {
    auto shared = context.take_x_transpose();
    if (!shared) shared = std::make_shared<Transpose>();  // this backward has been here before
    return shared->get([&] { return saved_x(context, saved); });
  }

  static constexpr std::size_t kBiasArgument = 2;  ///< of forward(), ctx aside
  /// Where X begins among the saved tensors; before it W, data and scales.
  static constexpr std::ptrdiff_t kSavedX = 2;
};

/// Rounding has no tangent, and computing below autograd would drop one silently.
inline void forbid_forward_mode(const at::Tensor& operand) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !operand.defined() || !operand._fw_grad(/*level=*/0).defined(),
      "te_int8::linear: expected operands without a forward-mode tangent, got one with; compute "
      "jacobian-vector products in full precision (Mode::Off)");
}

/// One call of a quantized linear layer, recorded for backward where grad mode asks for it.
inline at::Tensor call_linear(
    const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, LinearCall call) {
  for (const auto* operand : {&x, &weight, &bias}) forbid_forward_mode(*operand);
  const auto requires_grad = [](const at::Tensor& t) { return t.defined() && t.requires_grad(); };
  if (at::GradMode::is_enabled() &&
      (requires_grad(x) || requires_grad(weight) || requires_grad(bias))) {
    return LinearFunction::apply(x, as_optional(weight), as_optional(bias), std::move(call));
  }
  const PlainTensorOps plain;
  return call.deferred_biases.empty() ? linear_forward(x, weight, bias, call, /*keeps_x=*/false)
                                      : deferred_forward(x, weight, call);
}

}  // namespace te_int8::inline v0::detail
