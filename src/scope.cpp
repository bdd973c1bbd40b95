// One scope: which layers it covers and how, and what stands in the module tree meanwhile.
#include <te_int8/detail/scope.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <c10/util/Type.h>

#include <te_int8/backends.h>
#include <te_int8/detail/glob.h>

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

}  // namespace

Scope::Scope(torch::nn::Module& root, Mode mode, Recipe recipe)
    : root_(pointer_to(root)), mode_(mode), recipe_(std::move(recipe)) {
  auto found = LayerFinder::find(root);
  check_globs_match("include", recipe_.include(), found.layers);
  check_globs_match("exclude", recipe_.exclude(), found.layers);
  check_globs_match("rule", recipe_.rule_globs(), found.layers);
  others_ = std::move(found.others);
  configure(std::move(found.layers));
  rebuild_index();
  const bool quantizes = std::ranges::any_of(
      layers_, [](const ScopedLayer& layer) { return layer.quantized != nullptr; });
  if (mode_ != Mode::Off && !quantizes) {
    TORCH_WARN(
        "te_int8::AutocastGuard: nothing to quantize: of ", layers_.size(),
        " Linear layers and attention projections in the model none is selected");
  }
}

void Scope::configure(std::vector<Layer> layers) {
  std::vector<std::string> rule_backends;
  const auto backend = resolve_backend(recipe_.backend());
  for (const auto& rule : recipe_.rule_recipes())
    rule_backends.push_back(resolve_backend(rule.backend()));
  const auto activations = std::make_shared<ActivationCodes>();

  layers_.reserve(layers.size());
  for (auto& layer : layers) {
    auto& scoped = layers_.emplace_back();
    scoped.layer = std::move(layer);
    const auto& names = scoped.layer.names;
    if (mode_ == Mode::Off) {
      scoped.reason = "Mode::Off";
    } else if (matches_any(recipe_.exclude(), names)) {
      scoped.reason = "excluded";
    } else if (!recipe_.include().empty() && !matches_any(recipe_.include(), names)) {
      scoped.reason = "not included";
    } else if (!scoped.weight().defined() || scoped.weight().dim() != 2) {
      scoped.reason = "its weight is not a matrix";
    }
    if (!scoped.reason.empty()) continue;

    const Recipe* recipe = &recipe_;
    const std::string* layer_backend = &backend;
    for (std::size_t i = 0; i < rule_backends.size(); ++i) {
      if (!matches_any({recipe_.rule_globs()[i]}, names)) continue;
      recipe = &recipe_.rule_recipes()[i];
      layer_backend = &rule_backends[i];
    }
    const LinearConfig config(*recipe);
    if (config.quantizes_nothing()) {
      scoped.reason = "its recipe has three matmuls in full precision";
      continue;
    }
    scoped.quantized =
        std::make_shared<QuantizedLayer>(names.front(), mode_, config, *layer_backend, activations);
    if (scoped.layer.replaceable) {
      scoped.replacement =
          std::make_shared<QuantizedLinearImpl>(scoped.layer.linear, scoped.quantized);
    }
  }
}

const ScopedLayer* Scope::shared_layer(const Scope& other) const {
  std::unordered_set<const torch::nn::Module*> owners;
  for (const auto& scoped : other.layers_) owners.insert(&scoped.layer.owner());
  const auto found = std::ranges::find_if(
      layers_, [&](const ScopedLayer& scoped) { return owners.contains(&scoped.layer.owner()); });
  return found == layers_.end() ? nullptr : &*found;
}

void Scope::replace() {
  const std::lock_guard lock(registry_mutex());
  auto& stacks = slot_stacks();
  for (const auto& scoped : layers_) {
    replaced_.push_back(&scoped);
    for (const auto& slot : scoped.layer.slots) {
      const auto found = stacks.find({slot.parent.get(), slot.key});
      if (!scoped.replacement && found == stacks.end()) continue;  // shows the original already
      auto& stack = stacks[{slot.parent.get(), slot.key}];
      std::shared_ptr<torch::nn::Module> child = scoped.replacement;
      if (!child) child = scoped.layer.linear;  // full precision inside a scope that quantizes it
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
  for (const auto* scoped : replaced_) {
    for (const auto& slot : scoped->layer.slots) {
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
    if (const auto& replacement = scoped->replacement) {
      // An assignment to the replacement's weight or bias was meant for the layer.
      scoped->layer.linear->weight = replacement->live_weight();
      scoped->layer.linear->bias = replacement->live_bias();
    }
  }
  replaced_.clear();
}

Report Scope::report() const {
  Report report;
  std::unordered_map<const c10::TensorImpl*, const std::string*> first_with;  // of tied weights
  for (const auto& scoped : layers_) {
    LayerReport line{};
    line.name = scoped.layer.names.front();
    line.type = c10::demangle(typeid(scoped.layer.owner()).name());
    line.action = scoped.quantized ? "quantized" : "full precision";
    line.reason = scoped.reason;
    if (scoped.quantized) {
      const auto& count = scoped.quantized->count();
      line.backend = scoped.quantized->backend();
      line.calls = count.calls;
      const auto [first, added] = first_with.try_emplace(
          scoped.weight().unsafeGetTensorImpl(), &scoped.layer.names.front());
      if (!added) line.reason = "weight tied to '" + *first->second + "', where its calls count";
      line.bias_fused =
          line.calls > 0 && scoped.bias().defined() && count.fused_biases == line.calls;
    }
    report.layers.push_back(std::move(line));
  }
  for (const auto& other : others_) {
    report.layers.push_back(
        {.name = other.name,
         .type = c10::demangle(typeid(*other.module).name()),
         .action = "full precision",
         .reason = other.reason,
         .backend = "",
         .bias_fused = false,
         .calls = 0});
  }
  return report;
}

Scope::Index::Known::Known(const ScopedLayer& scoped)
    : original_(scoped.layer.weight()),
      replacement_(scoped.replacement ? scoped.replacement->weight : scoped.layer.weight()),
      storage_(scoped.weight().storage().getWeakStorageImpl()),
      live_(scoped.weight().unsafeGetTensorImpl()) {}

bool Scope::Index::Known::changed() const {
  const auto reassigned = [](const Member& member) {
    return member.tensor->unsafeGetTensorImpl() != member.impl._unsafe_get_target();
  };
  return reassigned(original_) || reassigned(replacement_) ||
         live_->unsafe_storage().unsafeGetStorageImpl() != storage_._unsafe_get_target();
}

bool Scope::Index::misses(const at::Tensor& operand, bool transposed) const {
  // Most matmuls end here: their operand is no view of a weight, and does not look like the transpose
  // of a row-major one that was assigned meanwhile.
  const bool of_known =
      operand.is_view() && weights.contains(operand._base().unsafeGetTensorImpl());
  const bool laid_out =
      !all_row_major || !transposed || operand.stride(0) == 1 || operand.size(0) <= 1;
  if (!of_known && !laid_out) return false;
  const auto found = by_depth.find(operand.size(transposed ? 0 : 1));
  return found != by_depth.end() && std::ranges::any_of(found->second, &Known::changed);
}

void Scope::rebuild_index() {
  auto index = std::make_shared<Index>();
  for (const auto& scoped : layers_) {
    const auto& weight = scoped.weight();
    if (!weight.defined() || weight.dim() != 2 || !weight.has_storage()) continue;
    const auto& storage = weight.storage();
    index->by_storage[storage.unsafeGetStorageImpl()].push_back(&scoped);
    index->weights.insert(weight.unsafeGetTensorImpl());
    index->all_row_major &= weight.stride(1) == 1 || weight.size(1) <= 1;
    index->by_depth[weight.size(1)].emplace_back(scoped);
  }
  const std::lock_guard lock(index_mutex_);
  index_ = std::move(index);
  epoch_.fetch_add(1, std::memory_order_release);
}

std::shared_ptr<const Scope::Index> Scope::index() const {
  const std::lock_guard lock(index_mutex_);
  return index_;
}

bool Scope::covers(const c10::TensorImpl* weight) const {
  return std::ranges::any_of(layers_, [&](const ScopedLayer& scoped) {
    return scoped.weight().unsafeGetTensorImpl() == weight;
  });
}

}  // namespace te_int8::inline v0::detail
