// One scope: which layers it covers and how, and what stands in the module tree meanwhile.
#include <te_int8/detail/scope.h>

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <te_int8/backends.h>
#include <te_int8/detail/convolution_layer.h>
#include <te_int8/detail/embedding_layer.h>
#include <te_int8/detail/glob.h>
#include <te_int8/detail/linear_layer.h>

#include "registry.h"

namespace te_int8::inline v0::detail {

namespace {

/// What several scopes, nested or of overlapping lifetimes, have put into one slot.
struct SlotStack {
  struct Entry {
    const Scope* scope;
    std::shared_ptr<torch::nn::Module> child, before;  ///< what it shows, and what it found
  };
  std::vector<Entry> entries;
};

/// By parent and key. Guarded by registry_mutex().
std::map<std::pair<torch::nn::Module*, std::string>, SlotStack>& slot_stacks() {
  static auto* stacks = new std::map<std::pair<torch::nn::Module*, std::string>, SlotStack>;
  return *stacks;
}

bool matches_any(const std::vector<std::string>& globs, const std::vector<std::string>& names) {
  return std::ranges::any_of(globs, [&](const auto& glob) {
    return std::ranges::any_of(names, [&](const auto& name) { return glob_matches(glob, name); });
  });
}

void check_globs_match(
    const char* what, const std::vector<std::string>& globs, const std::vector<Layer>& layers) {
  for (const auto& glob : globs) {
    const bool used = std::ranges::any_of(
        layers, [&](const Layer& layer) { return matches_any({glob}, layer.names); });
    if (used) continue;
    std::string names;
    for (const auto& layer : layers) names += "\n  \"" + layer.names.front() + '"';
    TORCH_CHECK_VALUE(
        false, "te_int8::AutocastGuard: expected each glob to match a layer, got ", what, " \"",
        glob, "\", which matches none of:", names);
  }
}

std::shared_ptr<QuantizedLayer> make_layer(
    Operation operation, const std::string& name, Mode mode, const LinearConfig& config, Backend backend,
    const std::shared_ptr<ActivationCodes>& activations) {
  switch (operation) {
    case Operation::Linear: return std::make_shared<LinearLayer>(name, mode, config, backend, activations);
    case Operation::Convolution: return std::make_shared<ConvolutionLayer>(name, mode, config, backend, activations);
    case Operation::Embedding: return std::make_shared<EmbeddingLayer>(name, mode, config, backend, activations);
  }
  return nullptr;
}

/// Why a layer of this operation computes nothing in INT8 by this recipe; empty where it does.
std::string nothing_for(Operation operation, const Recipe& recipe) {
  if (operation == Operation::Embedding) {
    return recipe.embeddings() == Precision::Full ? "embeddings are in full precision unless Recipe::embeddings is Int8" : "";
  }
  if (LinearConfig(recipe).quantizes_nothing()) return "its recipe has three matmuls in full precision";
  if (operation == Operation::Convolution && recipe.output() == Precision::Full) {
    return "its recipe has the output in full precision, and convolutions have no backward in INT8";
  }
  return "";
}

}  // namespace

Scope::Scope(torch::nn::Module& root, Mode mode, Recipe recipe)
    : root_(pointer_to(root)), mode_(mode), recipe_(std::move(recipe)),
      activations_(std::make_shared<ActivationCodes>(recipe_.preactivations(), parse_backend(recipe_.backend()))) {
  auto found = LayerFinder::find(root);
  check_globs_match("include", recipe_.include(), found.layers);
  check_globs_match("exclude", recipe_.exclude(), found.layers);
  check_globs_match("rule", recipe_.rule_globs(), found.layers);
  others_ = std::move(found.others);
  configure(std::move(found.layers));
  fold_batch_norms();
  make_replacements();
  rebuild_index();
  const bool quantizes = std::ranges::any_of(
      layers_, [](const ScopedLayer& layer) { return layer.quantized != nullptr; });
  if (mode_ != Mode::Off && !quantizes) {
    TORCH_WARN(
        "te_int8::AutocastGuard: nothing to quantize: of ", layers_.size(),
        " layers with weights in the model none is selected");
  }
}

std::string Scope::reason_against(const std::vector<std::string>& names) const {
  if (mode_ == Mode::Off) return "Mode::Off";
  if (matches_any(recipe_.exclude(), names)) return "excluded";
  if (!recipe_.include().empty() && !matches_any(recipe_.include(), names)) return "not included";
  return "";
}

void Scope::configure(std::vector<Layer> layers) {
  std::vector<Backend> rule_backends;
  backend_ = parse_backend(recipe_.backend());
  for (const auto& rule : recipe_.rule_recipes())
    rule_backends.push_back(parse_backend(rule.backend()));
  layers_.reserve(layers.size());
  for (auto& layer : layers) layers_.push_back({std::move(layer), "", nullptr, nullptr});
  // The globs see a weight that is tied within an operation under all of its names.
  std::array<std::unordered_map<const c10::TensorImpl*, std::vector<std::string>>, kOperations> all_names;
  const auto names_for = [&](const ScopedLayer& scoped) -> auto& {
    return all_names.at(static_cast<std::size_t>(scoped.layer.handles.operation))[scoped.layer.weight().unsafeGetTensorImpl()];
  };
  for (const auto& scoped : layers_) {
    auto& names = names_for(scoped);
    names.insert(names.end(), scoped.layer.names.begin(), scoped.layer.names.end());
  }
  for (auto& scoped : layers_) {
    const auto& weight = scoped.layer.weight();
    const auto& names =
        weight.defined() ? names_for(scoped) : scoped.layer.names;
    scoped.reason = reason_against(names);
    if (!scoped.reason.empty() && reason_against(scoped.layer.names).empty()) {
      scoped.reason += ", as another layer with the same weight is";
    }
    const auto operation = scoped.layer.handles.operation;
    if (scoped.reason.empty() && (!weight.defined() || !has_dimensions_for(operation, weight.dim()))) {
      scoped.reason = shape_of_weight(operation);
    }
    if (!scoped.reason.empty()) continue;

    const Recipe* recipe = &recipe_;
    auto layer_backend = backend_;
    for (std::size_t i = 0; i < rule_backends.size(); ++i) {
      if (!matches_any({recipe_.rule_globs()[i]}, names)) continue;
      recipe = &recipe_.rule_recipes()[i];
      layer_backend = rule_backends[i];
    }
    scoped.reason = nothing_for(operation, *recipe);
    if (!scoped.reason.empty()) continue;
    scoped.quantized =
        make_layer(operation, scoped.layer.names.front(), mode_, LinearConfig(*recipe), layer_backend, activations_);
    scoped.quantized->backend(scoped.weight().device().type());  // raises where it cannot compute
  }
}

/// One for all layers of an owner, of which one at least is quantized.
void Scope::make_replacements() {
  std::unordered_map<const Owner*, std::shared_ptr<Replacement>> made;
  for (const auto& scoped : layers_) {
    const auto& owner = scoped.layer.owner;
    if (!scoped.quantized || !owner->replaceable()) continue;
    auto& replacement = made[owner.get()];
    if (!replacement) replacement = owner->type->replacement(owner->module);
  }
  for (auto& scoped : layers_) {
    const auto found = made.find(scoped.layer.owner.get());
    if (found != made.end()) scoped.replacement = found->second;
  }
}

const ScopedLayer* Scope::shared_layer(const Scope& other) const {
  std::unordered_set<const torch::nn::Module*> owners;
  for (const auto& scoped : other.layers_) owners.insert(scoped.layer.owner->module.get());
  const auto found = std::ranges::find_if(
      layers_, [&](const ScopedLayer& scoped) { return owners.contains(scoped.layer.owner->module.get()); });
  return found == layers_.end() ? nullptr : &*found;
}

void Scope::replace() {
  const std::lock_guard lock(registry_mutex());
  auto& stacks = slot_stacks();
  for (const auto& scoped : layers_) {
    const auto& owner = scoped.layer.owner;
    if (scoped.layer.place > 0) continue;  // the owner has had its turn
    replaced_.emplace_back(owner, scoped.replacement);
    for (const auto& slot : owner->slots) {
      const auto found = stacks.find({slot.parent.get(), slot.key});
      if (!scoped.replacement && found == stacks.end()) continue;  // shows the original already
      auto& stack = stacks[{slot.parent.get(), slot.key}];
      auto child = std::dynamic_pointer_cast<torch::nn::Module>(scoped.replacement);
      if (!child) child = owner->module;  // full precision inside a scope that quantizes it
      stack.entries.push_back({this, child, slot.child});
      slot.parent->replace_module(slot.key, child);
    }
  }
}

void Scope::restore() noexcept {
  const std::lock_guard lock(registry_mutex());
  auto& stacks = slot_stacks();
  const torch::nn::Module* parent = nullptr;
  torch::OrderedDict<std::string, std::shared_ptr<torch::nn::Module>> children;
  for (const auto& [owner, replacement] : replaced_) {
    for (const auto& slot : owner->slots) {
      const auto found = stacks.find({slot.parent.get(), slot.key});
      if (found == stacks.end()) continue;
      auto& stack = found->second;
      const auto ours = std::ranges::find(stack.entries, this, &SlotStack::Entry::scope);
      if (ours == stack.entries.end()) continue;
      const auto entry = *ours;
      const auto above = stack.entries.erase(ours);
      if (above != stack.entries.end()) {
        // The inner scope is still open: when it ends, it gives back what this one found.
        if (above->before == entry.child) above->before = entry.before;
      } else {
        if (parent != slot.parent.get()) {
          parent = slot.parent.get();
          children = parent->named_children();
        }
        const auto* current = children.find(slot.key);
        if (current != nullptr && *current == entry.child && entry.child != entry.before) {
          slot.parent->replace_module(slot.key, entry.before);
        }
      }
      if (stack.entries.empty()) stacks.erase(found);
    }
    // An assignment to the replacement's weight or bias was meant for the layer.
    if (replacement) replacement->synchronize();
  }
  replaced_.clear();
}

void Scope::rebuild_index() {
  const std::lock_guard lock(index_mutex_);
  for (const auto& scoped : layers_) {
    if (scoped.replacement) scoped.replacement->synchronize();
  }
  auto index = std::make_shared<Index>(layers_);
  if (index_) index_->forget_codes_missing_in(*index);
  index_ = std::move(index);
  epoch_.fetch_add(1, std::memory_order_release);
}

std::shared_ptr<const Scope::Index> Scope::index() const {
  const std::lock_guard lock(index_mutex_);
  return index_;
}

at::Tensor Scope::successor_of(const at::Tensor& operand, bool transposed, Operation operation) const {
  for (const auto& scoped : layers_) {
    if (!scoped.replacement || scoped.layer.handles.operation != operation) continue;
    const auto& former = scoped.layer.weight();
    if (scoped.weight().is_same(former)) continue;
    const auto part = part_of(former, operand, transposed, operation);
    if (part && part->rows.size(0) == former.size(0)) return scoped.weight();
  }
  return {};
}

bool Scope::covers_any(const std::unordered_set<const torch::nn::Module*>& modules) const {
  return std::ranges::any_of(
      layers_, [&](const ScopedLayer& scoped) { return modules.contains(scoped.layer.owner->module.get()); });
}

}  // namespace te_int8::inline v0::detail
