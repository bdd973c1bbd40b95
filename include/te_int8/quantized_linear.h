// The layer that a scope puts into the module tree in the place of a torch::nn::Linear.
#pragma once

#include <memory>
#include <utility>

#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <te_int8/backends.h>
#include <te_int8/detail/linear_layer.h>
#include <te_int8/modules.h>

namespace te_int8::inline v0 {

namespace detail {
inline Weights weights_of_linear(torch::nn::LinearImpl& linear) {
  return {{"", linear.weight, linear.bias}};
}
}  // namespace detail

/// A torch::nn::Linear whose forward multiplies INT8 codes. It shares the parameters of `original`
/// and reads them there, so `to`, `train`, optimizers and serialization see one layer.
///
/// Usually a scope makes it; it can also be used by itself:
/// ```
/// te_int8::QuantizedLinear fc(linear.ptr());       // linear is a torch::nn::Linear
/// auto y = fc->forward(x);
/// ```
class TE_INT8_API QuantizedLinearImpl : public Quantized<torch::nn::LinearImpl> {
 public:
  /// Errors: no original; a recipe with globs or rules, which choose layers of a model; a back end
  /// that is unknown or not usable.
  explicit QuantizedLinearImpl(
      std::shared_ptr<torch::nn::LinearImpl> original, Mode mode = Mode::QAT,
      const Recipe& recipe = {})
      : Quantized(std::move(original), detail::weights_of_linear) {
    TORCH_CHECK_VALUE(
        recipe.include().empty() && recipe.exclude().empty() && recipe.rule_globs().empty(),
        "te_int8::QuantizedLinear: expected a recipe without include, exclude and rules, which choose "
        "among the layers of a model, got one with some");
    belongs_to_scope_ = false;
    if (mode == Mode::Off) return;
    layer_ = std::make_shared<detail::LinearLayer>(
        "QuantizedLinear", mode, detail::LinearConfig(recipe),
        detail::parse_backend(recipe.backend()), nullptr);
  }

  /// Stands in a module tree for its original; its calls are quantized as those of the original are,
  /// where the calling thread is in the scope.
  using Quantized::Quantized;

  /// x [*, in_features] -> [*, out_features], in the dtype that the original would give.
  torch::Tensor forward(const torch::Tensor& x) {
    if (layer_ == nullptr) {
      synchronize();
      return LinearImpl::forward(x);
    }
    const auto& w = live_weight();
    TORCH_CHECK(
        detail::LinearLayer::accepts(x, w), "te_int8::QuantizedLinear: expected x [*, ",
        w.size(1), "] of ", w.scalar_type(), " on ", w.device(), ", got ", x.sizes(), " of ",
        x.scalar_type(), " on ", x.device());
    return layer_->call(x, w, {w}, live_bias());
  }

  bool belongs_to_scope() const override { return belongs_to_scope_; }

 private:
  std::shared_ptr<detail::LinearLayer> layer_;  ///< null where LinearImpl::forward is the forward
  bool belongs_to_scope_ = true;
};

/// See QuantizedLinearImpl.
TORCH_MODULE(QuantizedLinear);

}  // namespace te_int8::inline v0
