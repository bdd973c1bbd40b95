// The computation of one quantized layer of a scope: how a call finds its codes and reaches the
// autograd function. QuantizedLinearImpl and the routed kernels both end here.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/autocast_mode.h>
#include <torch/types.h>

#include <te_int8/detail/activation_codes.h>
#include <te_int8/detail/weight_codes.h>
#include <te_int8/linear_function.h>
#include <te_int8/recipe.h>

namespace te_int8::inline v0::detail {

/// The dtype that autocast, where it is on, gives a matmul on this device.
inline std::optional<at::ScalarType> autocast_dtype(c10::Device device) {
  const auto type = device.type();
  if (!at::autocast::is_autocast_available(type) || !at::autocast::is_autocast_enabled(type)) {
    return std::nullopt;
  }
  return at::autocast::get_autocast_dtype(type);
}

/// The dtype that a full-precision linear layer would give for x. Autocast leaves double alone.
inline at::ScalarType output_dtype(const at::Tensor& x) {
  if (x.scalar_type() == at::kDouble) return at::kDouble;
  return autocast_dtype(x.device()).value_or(x.scalar_type());
}

/// The rows [first, first + count) of a weight, as an operation received them.
struct WeightRows {
  at::Tensor rows;  ///< for autograd: the parameter itself where it is whole
  int64_t first = 0;
  std::size_t holders = 1;  ///< see WeightCodes::get
};

class QuantizedLayer {
 public:
  QuantizedLayer(
      std::string name, Mode mode, LinearConfig config, Backend backend,
      std::shared_ptr<ActivationCodes> activations)
      : name_(std::move(name)),
        mode_(mode),
        config_(config),
        backend_(backend),
        activations_(std::move(activations)) {}

  /// What computes for a weight on this device.
  std::string backend(c10::DeviceType device) const { return backend_name(backend_, device); }
  const CallCount& count() const { return *count_; }
  bool int8_output() const { return config_.output == Precision::Int8; }

  /// Whether x [*,K] can meet this weight [N,K]; where not, LibTorch's own error is the better one.
  static bool accepts(const at::Tensor& x, const at::Tensor& weight) {
    if (x.is_nested() || x.layout() != at::kStrided) return false;
    const auto x_type = x.scalar_type();
    const auto weight_type = weight.scalar_type();
    const bool cast = x_type != at::kDouble && weight_type != at::kDouble &&
                      autocast_dtype(x.device()).has_value();
    return x.dim() >= 1 && x.size(-1) == weight.size(1) &&
           at::isFloatingType(x_type) && x.device() == weight.device() &&
           (x_type == weight_type || cast);
  }

  /// y = x W^T + b for x [*,K] and `part` of the live weight `whole`.
  at::Tensor call(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part,
      const at::Tensor& bias) {
    return call(x, whole, part, bias, {});
  }

  /// y = x W^T, to which one of `biases` is probably added next: see Note [Deferred bias].
  at::Tensor call_before_bias(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part,
      std::vector<at::Tensor> biases) {
    if (!int8_output()) biases.clear();
    return call(x, whole, part, {}, std::move(biases));
  }

 private:
  at::Tensor call(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part, const at::Tensor& bias,
      std::vector<at::Tensor> deferred_biases) {
    check_mode(x, part.rows, bias);
    for (const auto& deferred : deferred_biases) check_mode(x, part.rows, deferred);
    if (config_.quantizes_nothing()) {
      auto y = full_precision(x, part.rows, bias);
      ++count_->calls;
      return y;
    }

    if (backend_ != Backend::Auto) backend_name(backend_, x.device().type());  // raises where it cannot
    const BackendScope backend(backend_);
    LinearCall call{.config = config_, .out_dtype = output_dtype(x), .count = count_, .activations = activations_,
                    .observer = observer_of_call(name_)};
    const bool trained = at::GradMode::is_enabled() && part.rows.requires_grad();
    {
      const at::NoGradGuard no_grad;
      const PlainTensorOps plain;
      // With a full-precision output only an INT8 backward needs codes.
      if (int8_output() || (config_.grad_input == Precision::Int8 && x.requires_grad())) {
        weight_operand(call, whole, part, trained);
      }
      call.codes_inside = int8_output() && !trained && deferred_biases.empty() && !call.observer &&
                          makes_codes_inside(x, *call.weight, bias, config_);
      if (!call.codes_inside && (int8_output() || (config_.grad_weight == Precision::Int8 && part.rows.requires_grad()))) {
        call.x = x_operand(x);
      }
    }
    call.deferred_biases = std::move(deferred_biases);
    auto y = call_linear(x, part.rows, bias, std::move(call));
    Way::of_thread().passes(whole.unsafeGetTensorImpl());
    ++count_->calls;
    return y;
  }

  /// Mode::Inference records no graph, so nothing may ask for one.
  void check_mode(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) const {
    if (mode_ != Mode::Inference || !at::GradMode::is_enabled()) return;
    const char* wants_graph = x.requires_grad()                          ? "an input"
                              : weight.requires_grad()                   ? "a weight"
                              : bias.defined() && bias.requires_grad()   ? "a bias"
                                                                         : nullptr;
    TORCH_CHECK(
        wants_graph == nullptr, "te_int8: layer '", name_,
        "' is in Mode::Inference, which records no graph: expected torch::NoGradGuard (or "
        "InferenceMode), got grad mode on and ",
        wants_graph, " that requires grad; use Mode::QAT to train");
  }

  static at::Tensor full_precision(
      const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    const c10::impl::ExcludeDispatchKeyGuard no_routing(kRoutingKey);
    return at::linear(x, weight, as_optional(bias));
  }

  std::shared_ptr<Operand> x_operand(const at::Tensor& x) {
    const auto form = operand_form(config_.output, config_.grad_weight, config_.x_granularity);
    return activations_ ? activations_->get(x, form, this) : Operand::make(x, form);
  }

  void weight_operand(LinearCall& call, const at::Tensor& whole, const WeightRows& part, bool trained) {
    const auto form = operand_form(config_.output, config_.grad_input, config_.weight_granularity);
    const auto count = part.rows.size(0);
    const bool is_whole = count == whole.size(0);
    if (!is_whole && form == OperandForm::ColumnCodes) {
      call.weight = Operand::make(part.rows, form);
      return;
    }
    auto found = WeightCodeCache::instance().get(whole, form, part.holders, trained);
    call.gradients = std::move(found.gradients);
    if (is_whole) {
      call.weight = std::move(found.operand);
      return;
    }
    call.weight = Operand::rows_of(found.operand, part.first, count);
  }

  std::string name_;
  Mode mode_;
  LinearConfig config_;
  Backend backend_;
  std::shared_ptr<ActivationCodes> activations_;
  std::shared_ptr<CallCount> count_ = std::make_shared<CallCount>();
};

}  // namespace te_int8::inline v0::detail
