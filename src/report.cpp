// What a scope tells of its layers.
#include <te_int8/detail/scope.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include <c10/util/Type.h>
#include <torch/nn/modules/normalization.h>

namespace te_int8::inline v0::detail {
namespace {

/// Whether the tree still shows a scope's layer, or one of a scope inside it.
bool shown(const ScopedLayer& scoped) {
  if (!scoped.replacement) return true;
  const auto& owner = *scoped.layer.owner;
  return std::ranges::any_of(owner.slots, [&](const Slot& slot) {
    const auto children = slot.parent->named_children();
    const auto* child = children.find(slot.key);
    const auto* replacement = child == nullptr ? nullptr : dynamic_cast<const Replacement*>(child->get());
    return replacement != nullptr ? replacement->original_module() == owner.module
                                  : child != nullptr && *child == owner.module;
  });
}

}  // namespace

std::string Scope::reason_of(const OtherModule& other) const {
  const auto fold = std::ranges::find_if(folds_, [&](const auto& f) { return f->norm().is_module(*other.module); });
  if (fold != folds_.end() && (*fold)->count().taken > 0) return "folded into '" + (*fold)->convolution() + "'";
  const auto* norm = dynamic_cast<const torch::nn::LayerNormImpl*>(other.module.get());
  if (norm == nullptr || !norm->weight.defined()) return other.reason;
  const auto [results, with_codes] = activations_->count_of_norm(norm->weight);
  if (with_codes == 0) return other.reason;
  return c10::str(other.reason, "; ", with_codes, " of ", results, " results came with codes for the next layer");
}

Report Scope::report() const {
  Report report;
  std::unordered_map<const ScopedLayer*, const TiedLayers*> tied_of;
  const auto index = this->index();
  for (const auto& tied : index->tied) {
    for (const auto* layer : tied.layers) tied_of[layer] = &tied;
  }
  for (const auto& scoped : layers_) {
    LayerReport line{};
    line.name = scoped.layer.names.front();
    const auto& module = *scoped.layer.owner->module;
    line.type = c10::demangle(typeid(module).name());
    line.action = "full precision";
    line.reason = scoped.reason;
    const auto found = tied_of.find(&scoped);
    const auto* first = found == tied_of.end() ? &scoped : &found->second->first();
    const auto& weight = scoped.weight();
    if (scoped.quantized && (!weight.defined() || !has_dimensions_for(scoped.layer.handles.operation, weight.dim()))) {
      line.reason = shape_of_weight(scoped.layer.handles.operation);
    } else if (scoped.quantized && found != tied_of.end() && !found->second->quantized()) {
      line.reason = "was given the weight of a layer in full precision";
    } else if (scoped.quantized) {
      line.action = "quantized";
      line.backend = scoped.quantized->backend(weight.device().type());
      line.calls = scoped.quantized->count().calls;
      line.bias_fused = line.calls > 0 && scoped.bias().defined() &&
                        scoped.quantized->count().fused_biases == line.calls;
      if (first != &scoped) {
        line.reason = "weight tied to '" + first->layer.names.front() + "', where its calls count";
      } else if (!shown(scoped)) {
        line.reason = "another module has taken its place inside the scope";
      } else if (line.calls > 0) {
        line.reason = scoped.quantized->limits();
      }
    }
    report.layers.push_back(std::move(line));
  }
  for (const auto& other : others_) {
    report.layers.push_back(
        {.name = other.name,
         .type = other.type,
         .action = "full precision",
         .reason = reason_of(other),
         .backend = "",
         .bias_fused = false,
         .calls = 0});
  }
  return report;
}

}  // namespace te_int8::inline v0::detail
