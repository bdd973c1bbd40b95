// Note [Producers]
//
// A quantized layer reads its input once more only to make its codes, where the kernel that made the input could have left
// them. On the routing key a scope therefore sees the operations below. Where a quantized layer has read, last time, the codes
// of what an operation at this place gives (activation_codes.h), they are made together, as LibTorch and quantize_rows would,
// bit for bit; else LibTorch computes. Gradients are LibTorch's.
//
// Codes that come this way can be had again from what the operation's own backward holds anyway. So a quantized layer does
// not hold them for its backward, but makes them again (CodesSource): a pass over memory, for half of what is held.
//
// In the backward it is the function whose kernel makes what the layer before it reads next, and leaves the codes of that
// likewise (gradient_codes.h).
#include "routing.h"

#include <string_view>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include <te_int8/detail/scope.h>

#include "activations.h"

namespace te_int8::inline v0::detail {
namespace {

using at::Tensor;
using Kind = CodesSource::Kind;
using OptionalTensor = std::optional<Tensor>;

/// What a function of single values gives and leaves.
struct MadeByFunction {
  Activated activated;
  std::vector<Tensor> held;  ///< for its backward: x, or its codes and scales; of Relu y
};

MadeByFunction make_by_function(Kind f, const Tensor& x, bool holds_codes) {
  const PlainTensorOps plain;
  MadeByFunction made{activate(f, x), {}};
  if (f == Kind::Relu) {
    made.held = {made.activated.y};
  } else if (holds_codes) {
    const auto [codes, scales] = ops::quantize_rows(x);
    made.held = {codes, scales};
  } else {
    made.held = {x};
  }
  return made;
}

/// dy f'(x), which autograd can differentiate where grad mode is on. Writes over x where it `may`.
Tensor gradient_of_function(Kind f, const Tensor& dy, const Tensor& x, bool may_write) {
  const auto gelu = [&](const char* approximate) {
    if (!may_write) return at::gelu_backward(dy, x, approximate);
    auto dx = x;
    return at::gelu_backward_out(dx, dy, x, approximate);
  };
  switch (f) {
    case Kind::Gelu: return gelu("none");
    case Kind::GeluTanh: return gelu("tanh");
    case Kind::Relu: return at::threshold_backward(dy, x, 0);
    case Kind::Silu: {
      if (at::GradMode::is_enabled()) {  // silu_backward has no derivative
        const auto sigmoid = at::sigmoid(x);
        return dy * (sigmoid * (1 + x * (1 - sigmoid)));
      }
      auto dx = x;
      return may_write ? at::silu_backward_out(dx, dy, x) : at::silu_backward(dy, x);
    }
    case Kind::LayerNorm: break;
  }
  TORCH_INTERNAL_ASSERT(false, "not a function of single values");
}

/// The same, written over dy, with the codes that the quantized layer behind the current node is about to make of it.
/// Undefined where there is no such layer, or somebody else may have hold of dy.
Tensor gradient_leaving_codes(Kind f, const Tensor& dy, const std::vector<Tensor>& held) {
  auto& node = *torch::autograd::get_current_node();
  if (at::GradMode::is_enabled() || has_hooks_before(node) || !node.post_hooks().empty()) return {};
  // Versions tell what autograd adds to a gradient; below this key they do not count.
  if (c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::ADInplaceOrView)) return {};
  if (!LastGradient::of_thread().is_of(dy, node)) return {};
  auto* layer = node.next_edge(0).function.get();
  const auto wanted = LinearFunction::wanted_codes(layer, dy.scalar_type());
  if (!wanted) return {};
  const BackendScope same_backend(wanted->backend);
  const PlainTensorOps plain;
  auto codes = differentiate(f, dy, held, *wanted);
  if (!codes) return {};
  torch::autograd::impl::bump_version(dy);
  LinearFunction::leave_codes(*layer, dy, std::move(*codes));
  return dy;
}

class ActivationFunction : public torch::autograd::Function<ActivationFunction> {
  using AutogradContext = torch::autograd::AutogradContext;

 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, Kind f, bool holds_codes, MadeByFunction* made) {
    *made = make_by_function(f, x, holds_codes);
    ctx->saved_data["f"] = static_cast<int64_t>(f);
    ctx->saved_data["dtype"] = x.scalar_type();
    ctx->save_for_backward(made->held);
    return made->activated.y;
  }

  static torch::autograd::variable_list backward(AutogradContext* ctx, const torch::autograd::variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    if (!gradients[0].defined()) return {{}, {}, {}, {}};
    const auto f = static_cast<Kind>(ctx->saved_data.at("f").toInt());
    if (auto dx = gradient_leaving_codes(f, gradients[0], saved); dx.defined()) return {dx, {}, {}, {}};
    const bool of_codes = saved.size() == 2;
    const auto x = of_codes ? ops::dequantize(saved[0], saved[1], ctx->saved_data.at("dtype").toScalarType()) : saved[0];
    const bool second_order = at::GradMode::is_enabled();
    const bool may_write = of_codes && !second_order && gradients[0].scalar_type() == x.scalar_type();
    auto dx = gradient_of_function(f, gradients[0], x, may_write);
    if (of_codes && second_order) {
      const at::NoGradGuard no_grad;
      dx = dx.detach();
      forbid_second_order(dx, gradients[0], "Recipe::preactivations");
    }
    return {dx, {}, {}, {}};
  }
};

/// An activation and its codes.
struct Made {
  Tensor y;
  ops::Codes codes;
  std::shared_ptr<const CodesSource> source = nullptr;  ///< where the graph of y holds what it takes
};

bool has_tangent(const Tensor& x) { return x.defined() && x._fw_grad(/*level=*/0).defined(); }

/// What `with_codes(activations)` makes where its codes will probably be read, and `fits()`, else what `without()` does.
template <typename Fits, typename WithCodes, typename Without>
Tensor produce(Kind kind, const Tensor& x, const Fits& fits, const WithCodes& with_codes, const Without& without) {
  if (!x.is_cuda() || x.is_nested() || x.layout() != at::kStrided) return without();
  const auto activations = activations_of_thread();
  const auto place = activations ? Way::of_thread().next(static_cast<int>(kind)) : std::nullopt;
  if (!place) return without();
  const BackendScope same_backend(activations->backend());
  // What is held must not depend on what is known.
  const bool holds_codes = activations->preactivations() == Precision::Int8 && kind != Kind::LayerNorm && kind != Kind::Relu;
  const bool wanted = holds_codes || Readers::instance().at(*place) > 0;
  if (!wanted || has_tangent(x) || !fits_activations(x) || !fits()) {
    auto y = without();
    activations->made(y, *place, nullptr, nullptr);
    return y;
  }
  Made made = with_codes(holds_codes);
  auto& [codes, scales] = made.codes;
  activations->made(
      made.y, *place, std::make_shared<Operand>(std::move(codes), std::move(scales), OperandForm::RowCodes),
      std::move(made.source));
  return made.y;
}

template <typename Without>
Tensor produce_function(Kind f, const Tensor& x, const Without& without) {
  const auto with_codes = [&](bool holds_codes) {
    if (!at::GradMode::is_enabled() || !x.requires_grad()) {
      auto activated = make_by_function(f, x, /*holds_codes=*/false).activated;
      return Made{std::move(activated.y), std::move(activated.codes)};
    }
    MadeByFunction made;
    const auto y = ActivationFunction::apply(x, f, holds_codes, &made);
    const at::NoGradGuard no_grad;
    std::vector<Tensor> inputs{std::get<1>(made.activated.codes), made.activated.inverses};
    if (f != Kind::Relu) {  // whose y an entry of the cache must not keep alive
      for (const auto& tensor : made.held) inputs.push_back(tensor.detach());
    }
    return Made{y, std::move(made.activated.codes), std::make_shared<CodesSource>(f, x.scalar_type(), std::move(inputs))};
  };
  return produce(f, x, [] { return true; }, with_codes, without);
}

Tensor gelu(c10::DispatchKeySet keys, const Tensor& x, c10::string_view approximate) {
  return produce_function(approximate == "tanh" ? Kind::GeluTanh : Kind::Gelu, x, [&] {
    return at::_ops::gelu::redispatch(keys & kBelowRouting, x, approximate);
  });
}

Tensor relu(c10::DispatchKeySet keys, const Tensor& x) {
  return produce_function(Kind::Relu, x, [&] { return at::_ops::relu::redispatch(keys & kBelowRouting, x); });
}

Tensor silu(c10::DispatchKeySet keys, const Tensor& x) {
  return produce_function(Kind::Silu, x, [&] { return at::_ops::silu::redispatch(keys & kBelowRouting, x); });
}

Tensor layer_norm(
    c10::DispatchKeySet keys, const Tensor& x, c10::SymIntArrayRef shape, const OptionalTensor& weight,
    const OptionalTensor& bias, double eps, bool cudnn_enable) {
  const auto without = [&] {
    return at::_ops::layer_norm::redispatch(keys & kBelowRouting, x, shape, weight, bias, eps, cudnn_enable);
  };
  if (at::autocast::is_autocast_enabled(x.device().type())) return without();  // comes here again, with x in fp32
  const auto gamma = weight.value_or(Tensor()), beta = bias.value_or(Tensor());
  const auto fits = [&] {
    const auto plain = [&](const Tensor& t) {
      return !t.defined() || (t.dim() == 1 && t.scalar_type() == x.scalar_type() && t.device() == x.device() &&
                              !has_tangent(t) && fits_activations(t));
    };
    return shape.size() == 1 && shape[0] == x.size(-1) && plain(gamma) && plain(beta);
  };
  bool left_codes = false;
  const auto with_codes = [&](bool) {
    left_codes = true;
    auto [y, mean, rstd] = at::native_layer_norm_symint(x, shape, weight, bias, eps);
    const at::NoGradGuard no_grad;
    // SGD's steps change no version of gamma and beta.
    const auto copied = [&, &of = y](const Tensor& t) { return t.defined() && of.requires_grad() ? t.clone() : t; };
    const auto source = std::make_shared<CodesSource>(
        Kind::LayerNorm, x.scalar_type(),
        std::vector<Tensor>{x.detach(), mean.detach(), rstd.detach(), copied(gamma), copied(beta)});
    const PlainTensorOps plain;
    auto codes = source->make();
    return Made{y, std::move(codes), y.requires_grad() ? source : nullptr};
  };
  auto y = produce(Kind::LayerNorm, x, fits, with_codes, without);
  const auto activations = x.is_cuda() && gamma.defined() ? activations_of_thread() : nullptr;
  if (activations) activations->note_norm(gamma, left_codes);
  return y;
}

}  // namespace

void install_producers(torch::Library& aten) {
  aten.impl("gelu", TORCH_FN(gelu));
  aten.impl("relu", TORCH_FN(relu));
  aten.impl("silu", TORCH_FN(silu));
  aten.impl("layer_norm", TORCH_FN(layer_norm));
}

}  // namespace te_int8::inline v0::detail
