// Which batch norms a scope folds into the convolutions before them (detail/batch_norm.h).
#include <te_int8/detail/scope.h>

#include <algorithm>
#include <memory>
#include <string>
#include <typeindex>

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>

#include <te_int8/detail/convolution_layer.h>

namespace te_int8::inline v0::detail {
namespace {

bool is_plain_convolution(const torch::nn::Module& module) {
  const std::type_index type = typeid(module);
  return type == typeid(torch::nn::Conv1dImpl) || type == typeid(torch::nn::Conv2dImpl) || type == typeid(torch::nn::Conv3dImpl);
}

}  // namespace

/// Of pairs that were named, what cannot be folded is an error, in any mode. In a Sequential only modules count whose forward is
/// LibTorch's own. A layer in full precision leaves its norm as it is.
void Scope::fold_batch_norms() {
  const auto modules = root_->named_modules("", /*include_self=*/false);  // which a root on the stack could not
  auto pairs = recipe_.batch_norm_pairs();
  const auto named = pairs.size();
  const auto add_pairs_of = [&](const torch::nn::Module& module, const std::string& prefix) {
    if (dynamic_cast<const torch::nn::SequentialImpl*>(&module) == nullptr) return;
    const auto children = module.named_children();
    for (std::size_t i = 0; i + 1 < children.size(); ++i) {
      pairs.emplace_back(prefix + children[i].key(), prefix + children[i + 1].key());
    }
  };
  if (recipe_.fold_batch_norms()) {
    add_pairs_of(*root_, "");
    for (const auto& item : modules) add_pairs_of(*item.value(), item.key() + '.');
  }
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto& convolution = pairs[i].first;
    const auto& norm_name = pairs[i].second;
    const auto layer = std::ranges::find_if(layers_, [&](const ScopedLayer& scoped) {
      return std::ranges::count(scoped.layer.names, convolution) > 0 && scoped.layer.handles.operation == Operation::Convolution;
    });
    const auto* module = modules.find(norm_name);
    const auto norm = module == nullptr ? nullptr : BatchNorm::of(*module);
    const bool fits = layer != layers_.end() && norm != nullptr && layer->weight().defined() &&
                      layer->weight().dim() == norm->dimensions() + 2 && layer->weight().size(0) == norm->channels();
    TORCH_CHECK_VALUE(
        fits || i >= named, "te_int8::Recipe::fold_batch_norm: expected a Conv1d to Conv3d and a BatchNorm of its output channels and "
        "dimensions, got \"", convolution, "\" and \"", norm_name, "\"");
    if (!fits || (i >= named && !(norm->is_plain() && is_plain_convolution(*layer->layer.owner->module)))) continue;
    const auto shares = std::ranges::count_if(
        layers_, [&](const ScopedLayer& other) { return other.weight().is_same(layer->weight()); });
    const bool again = std::ranges::any_of(folds_, [&](const auto& fold) {
      return fold->convolution() == layer->layer.names.front() || fold->norm().is_module(**module);
    });
    const bool alone = layer->layer.names.size() == 1 && shares == 1 && !again;
    TORCH_CHECK_VALUE(
        alone || i >= named, "te_int8::Recipe::fold_batch_norm: expected a convolution that stands once in the model, with a weight "
        "and a norm of its own, got \"", convolution, "\" and \"", norm_name, "\"");
    if (!alone || !layer->quantized || mode_ != Mode::Inference) continue;
    folds_.push_back(std::make_shared<BatchNormFold>(convolution, norm_name, norm));
    static_cast<ConvolutionLayer&>(*layer->quantized).fold(folds_.back());
  }
}

void Scope::warn_of_folds() const {
  for (const auto& fold : folds_) {
    const auto [results, taken] = fold->count();
    if (results != taken) {
      TORCH_WARN("te_int8::AutocastGuard: of '", fold->convolution(), "' ", fold->remark(), "; see Recipe::fold_batch_norm");
    }
  }
}

}  // namespace te_int8::inline v0::detail
