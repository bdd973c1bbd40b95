// One call of a quantized linear layer, and its forward.
#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <te_int8/backends.h>
#include <te_int8/detail/call_observer.h>
#include <te_int8/detail/deferred.h>
#include <te_int8/detail/few_rows.h>
#include <te_int8/detail/operand.h>

namespace te_int8::inline v0::detail {

/// Rises with the gradients that backwards of a quantized layer compute for a weight, and with those that
/// are accumulated into it: torch::optim::SGD writes weights without bumping their version, so a new
/// gradient is the only sign that the weight is about to change.
using GradientCount = std::shared_ptr<std::atomic<uint64_t>>;

/// How often a layer was called, how often its bias went into the matmul's epilogue, and how often it was computed in full
/// precision because that is faster.
struct CallCount {
  std::atomic<int64_t> calls{0}, fused_biases{0}, in_full_precision{0};
};

/// A cache of codes that a forward leaves, some of which nobody needs any more by the time of its backward.
class CodesInUse {
 public:
  virtual ~CodesInUse() = default;
  virtual void drop_dead() = 0;
};

/// One call of a quantized linear layer. Operands left empty are quantized in the forward, of x perhaps by the product's
/// kernel.
struct LinearCall {
  LinearConfig config;
  at::ScalarType out_dtype;
  std::shared_ptr<Operand> x = nullptr, weight = nullptr;
  bool codes_inside = false;                   ///< makes_codes_inside, and no backward needs the codes
  GradientCount gradients = nullptr;           ///< of the weight, where a cache wants to know
  std::shared_ptr<CallCount> count = nullptr;  ///< where somebody counts
  std::weak_ptr<CodesInUse> activations = {};
  std::shared_ptr<CallObserver> observer = nullptr;  ///< who measures; then not codes_inside
  /// Not empty: whichever of these is added next goes into the epilogue, see Note [Deferred bias].
  /// Needs x and weight.
  std::vector<at::Tensor> deferred_biases = {};
};

/// Inside: no autograd, no autocast, no routing. The tensors of a layer's own computation must not
/// be recorded, cast or quantized again.
struct PlainTensorOps {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast_or_routing{
      c10::autocast_dispatch_keyset | c10::DispatchKeySet(kRoutingKey)};
};

/// y = x W^T + b from codes, x [*,K] -> [*,N].
inline at::Tensor multiply_codes(
    const Operand& x, Operand& weight, const at::Tensor& bias, at::ScalarType out_dtype) {
  auto sizes = x.data().sym_sizes().vec();
  sizes.back() = weight.data().sym_size(0);
  const auto packed = weight.packed();
  const auto y = packed.defined()
                     ? scaled_mm_packed(
                           x.matrix(), packed, weight.data().size(0), x.scale_list(),
                           weight.scales(), as_optional(bias), out_dtype)
                     : ops::scaled_mm(
                           x.matrix(), weight.data(), x.scale_list(), weight.scales(),
                           as_optional(bias), out_dtype);
  return sizes.size() == 2 ? y : at::_unsafe_view_symint(y, sizes);
}

/// Whether one kernel computes the layer, so that nobody but it needs codes of x.
inline bool makes_codes_inside(
    const at::Tensor& x, const Operand& weight, const at::Tensor& bias, const LinearConfig& config) {
  return !config.x_granularity.is_per_tensor() &&
         fits_linear_of_few_rows(x, weight.data(), weight.scales(), as_optional(bias));
}

/// The forward alone. `x` and `weight` may be undefined where the call brings their codes. `keeps_x`: the backward will
/// need the codes of x.
inline at::Tensor linear_forward(
    const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, LinearCall& call, bool keeps_x) {
  const auto& config = call.config;
  const auto dtype = call.out_dtype;
  if (call.observer) call.observer->saw_forward(x, call.x.get(), weight, call.weight.get());
  if (config.output == Precision::Full) {
    const auto cast = [&](const at::Tensor& t) {
      return !t.defined() || t.scalar_type() == dtype ? t : t.to(dtype);
    };
    return at::linear(cast(x), cast(weight), as_optional(cast(bias)));
  }
  if (!call.weight) call.weight = Operand::make(weight, quantized_form(config.weight_granularity));
  at::Tensor y;
  if (call.codes_inside || (!call.x && !keeps_x && makes_codes_inside(x, *call.weight, bias, config))) {
    y = linear_of_few_rows(x, call.weight->data(), call.weight->scales(), as_optional(bias), dtype);
  } else {
    if (!call.x) call.x = Operand::make(x, quantized_form(config.x_granularity));
    y = multiply_codes(*call.x, *call.weight, bias, dtype);
  }
  if (bias.defined() && call.count) ++call.count->fused_biases;
  return y;
}

/// The forward with the bias left open, see Note [Deferred bias].
inline at::Tensor deferred_forward(const at::Tensor& x, const at::Tensor& weight, LinearCall& call) {
  if (call.observer) call.observer->saw_forward(x, call.x.get(), weight, call.weight.get());
  auto sizes = call.x->data().sizes().vec();
  sizes.back() = call.weight->data().size(0);
  auto compute = [x = call.x, weight = call.weight, count = call.count, dtype = call.out_dtype,
                  backend = current_backend()](const at::Tensor& bias) {
    const PlainTensorOps plain;
    const BackendScope same_backend(backend);
    auto y = multiply_codes(*x, *weight, bias, dtype);
    if (bias.defined() && count) ++count->fused_biases;
    return y;
  };
  return make_deferred(
      sizes, call.out_dtype, call.x->data().device(), std::move(call.deferred_biases),
      std::move(compute));
}

}  // namespace te_int8::inline v0::detail
