// The layer that a scope puts into the module tree in the place of a torch::nn::Linear.
#pragma once

#include <memory>
#include <ostream>
#include <utility>

#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <te_int8/backends.h>
#include <te_int8/detail/quantized_layer.h>

namespace te_int8::inline v0 {

namespace detail {
struct OfScope {};
}  // namespace detail

/// A torch::nn::Linear whose forward multiplies INT8 codes. It shares the parameters of `original`
/// and reads them there, so `to`, `train`, optimizers and serialization see one layer.
///
/// Usually a scope makes it; it can also be used by itself:
/// ```
/// te_int8::QuantizedLinear fc(linear.ptr());       // linear is a torch::nn::Linear
/// auto y = fc->forward(x);
/// ```
class TE_INT8_API QuantizedLinearImpl : public torch::nn::LinearImpl {
 public:
  /// Errors: no original; a recipe with globs or rules, which choose layers of a model; a back end
  /// that is unknown or not usable.
  explicit QuantizedLinearImpl(
      std::shared_ptr<torch::nn::LinearImpl> original, Mode mode = Mode::QAT,
      const Recipe& recipe = {})
      : QuantizedLinearImpl(std::move(original), detail::OfScope()) {
    TORCH_CHECK_VALUE(
        recipe.include().empty() && recipe.exclude().empty() && recipe.rule_globs().empty(),
        "te_int8::QuantizedLinear: expected a recipe without include, exclude and rules, which choose "
        "among the layers of a model, got one with some");
    belongs_to_scope_ = false;
    if (mode == Mode::Off) return;
    layer_ = std::make_shared<detail::QuantizedLayer>(
        "QuantizedLinear", mode, detail::LinearConfig(recipe),
        detail::parse_backend(recipe.backend()), nullptr);
  }

  /// Stands in a module tree for `original`; its calls are quantized as those of the original are,
  /// where the calling thread is in the scope.
  QuantizedLinearImpl(std::shared_ptr<torch::nn::LinearImpl> original, detail::OfScope)
      // Copied, not built from options: that would draw random numbers.
      : LinearImpl(checked(original)),
        original_(std::move(original)),
        entry_weight_(weight),
        entry_bias_(bias) {}

  /// x [*, in_features] -> [*, out_features], in the dtype that the original would give.
  torch::Tensor forward(const torch::Tensor& x) {
    if (layer_ == nullptr) {
      synchronize();
      return LinearImpl::forward(x);
    }
    const auto& w = live_weight();
    TORCH_CHECK(
        detail::QuantizedLayer::accepts(x, w), "te_int8::QuantizedLinear: expected x [*, ",
        w.size(1), "] of ", w.scalar_type(), " on ", w.device(), ", got ", x.sizes(), " of ",
        x.scalar_type(), " on ", x.device());
    return layer_->call(x, w, {w}, live_bias());
  }

  bool belongs_to_scope() const { return belongs_to_scope_; }
  const std::shared_ptr<torch::nn::LinearImpl>& original() const { return original_; }

  void train(bool on = true) override {
    LinearImpl::train(on);
    original_->train(on);
  }
  bool is_training() const noexcept override { return original_->is_training(); }
  void pretty_print(std::ostream& stream) const override {
    stream << "te_int8::QuantizedLinear(in_features=" << options.in_features()
           << ", out_features=" << options.out_features() << ", bias=" << std::boolalpha
           << options.bias() << ")";
  }

  /// The weight and bias in force: the original's, unless somebody assigned others to this layer.
  const torch::Tensor& live_weight() const {
    return weight.is_same(entry_weight_) ? original_->weight : weight;
  }
  const torch::Tensor& live_bias() const {
    return bias.is_same(entry_bias_) ? original_->bias : bias;
  }
  /// Makes an assignment to one of the two handles of this layer one to both.
  void synchronize() {
    synchronize(weight, original_->weight, entry_weight_);
    synchronize(bias, original_->bias, entry_bias_);
  }

 private:
  // The order of the writes keeps live_weight() right for other threads.
  static void synchronize(torch::Tensor& here, torch::Tensor& there, torch::Tensor& entry) {
    if (here.is_same(entry) && there.is_same(entry)) return;
    if (there.is_same(entry)) {
      there = here;
    } else {
      here = there;
    }
    entry = here;
  }

  static const torch::nn::LinearImpl& checked(
      const std::shared_ptr<torch::nn::LinearImpl>& original) {
    TORCH_CHECK_VALUE(
        original != nullptr, "te_int8::QuantizedLinear: expected a Linear, got a null pointer");
    return *original;
  }

  std::shared_ptr<torch::nn::LinearImpl> original_;
  std::shared_ptr<detail::QuantizedLayer> layer_;  ///< null where LinearImpl::forward is the forward
  bool belongs_to_scope_ = true;
  torch::Tensor entry_weight_, entry_bias_;
};

/// See QuantizedLinearImpl.
TORCH_MODULE(QuantizedLinear);

}  // namespace te_int8::inline v0
