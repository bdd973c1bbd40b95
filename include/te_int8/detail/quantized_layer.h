// What the quantized layers of a scope have in common, whatever they compute (linear_layer.h, convolution_layer.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/autocast_mode.h>
#include <torch/types.h>

#include <te_int8/detail/activation_codes.h>
#include <te_int8/detail/faster_way.h>
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

/// The dtype that a full-precision layer would give for x. Autocast leaves double alone.
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
  virtual ~QuantizedLayer() = default;
  QuantizedLayer(const QuantizedLayer&) = delete;
  QuantizedLayer& operator=(const QuantizedLayer&) = delete;

  /// What computes for a weight on this device.
  std::string backend(c10::DeviceType device) const { return backend_name(backend_, device); }
  const CallCount& count() const { return *count_; }
  bool int8_output() const { return config_.output == Precision::Int8; }
  /// What the layer leaves in full precision, for the report; empty where nothing.
  virtual std::string limits() const {
    const int64_t calls = count_->in_full_precision;
    return calls == 0 ? "" : c10::str(calls, " of ", count_->calls, " calls in full precision, which is faster for their shapes");
  }

 protected:
  /// Whether a product of x and a weight has one dtype, perhaps by autocast.
  static bool dtypes_meet(const at::Tensor& x, const at::Tensor& weight) {
    const auto x_type = x.scalar_type();
    const auto weight_type = weight.scalar_type();
    const bool cast = x_type != at::kDouble && weight_type != at::kDouble &&
                      autocast_dtype(x.device()).has_value();
    return at::isFloatingType(x_type) && (x_type == weight_type || cast);
  }

  /// Whether full precision may compute a call that it computes in less time. Training is to see what rounding does.
  bool may_leave_int8() const { return config_.allow_full_precision && is_inference() && int8_output() && backend_ == Backend::Auto; }
  CallKind kind_of_call(
      Operation operation, const at::Tensor& x, const at::Tensor& weight, int64_t rows, std::vector<int64_t> sizes) const {
    sizes.insert(
        sizes.end(), {config_.x_granularity.is_per_tensor(), config_.weight_granularity.is_per_tensor(),
                      weight.requires_grad()});  // autocast keeps the casts of those that do
    return {operation, x.device(), {x.scalar_type(), weight.scalar_type(), output_dtype(x)}, rows, std::move(sizes)};
  }
  /// Counts a call in full precision, of which y is the result.
  at::Tensor count_full_precision(at::Tensor y) {
    ++count_->calls;
    ++count_->in_full_precision;
    return y;
  }

  const std::string& name() const { return name_; }
  bool is_inference() const { return mode_ == Mode::Inference; }
  const LinearConfig& config() const { return config_; }
  const std::shared_ptr<CallCount>& counter() const { return count_; }
  const std::shared_ptr<ActivationCodes>& activations() const { return activations_; }

  /// The back end for a call; an error where it cannot compute on this device.
  Backend backend_on(c10::Device device) const {
    if (backend_ != Backend::Auto) backend_name(backend_, device.type());
    return backend_;
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

  std::shared_ptr<Operand> x_operand(const at::Tensor& x, OperandForm form) const {
    return activations_ ? activations_->get(x, form, this) : Operand::make(x, form);
  }

 private:
  std::string name_;
  Mode mode_;
  LinearConfig config_;
  Backend backend_;
  std::shared_ptr<ActivationCodes> activations_;
  std::shared_ptr<CallCount> count_ = std::make_shared<CallCount>();
};

}  // namespace te_int8::inline v0::detail
