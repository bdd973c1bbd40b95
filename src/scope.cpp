// Scopes and the process's registry of them: who covers what, in which thread, and what stands in the
// module tree.
#include <te_int8/detail/scope.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Type.h>

#include <te_int8/backends.h>
#include <te_int8/detail/deferred.h>
#include <te_int8/detail/glob.h>

#include "routing.h"

namespace te_int8::inline v0::detail {

WeightCodeCache& WeightCodeCache::instance() {
  // Never destroyed: a backward may still come while the process ends.
  static auto* cache = new WeightCodeCache;
  return *cache;
}

namespace {

/// What several scopes, nested or of overlapping lifetimes, have put into one slot.
struct SlotStack {
  struct Entry {
    const Scope* scope;
    std::shared_ptr<torch::nn::Module> child;
  };
  std::shared_ptr<torch::nn::Module> original;
  std::vector<Entry> entries;

  const std::shared_ptr<torch::nn::Module>& top() const {
    return entries.empty() ? original : entries.back().child;
  }
};

struct LiveScope {
  std::shared_ptr<Scope> scope;
  int64_t members;
};

struct Registry {
  std::recursive_mutex mutex;
  std::vector<LiveScope> scopes;
  std::map<std::pair<torch::nn::Module*, std::string>, SlotStack> slots;

  static Registry& instance() {
    static auto* registry = new Registry;  // never destroyed: threads may outlive static objects
    return *registry;
  }
};

/// A scope as one thread sees it, with its own pointer to the index.
struct Frame {
  std::shared_ptr<Membership> membership;
  std::shared_ptr<const Scope::Index> index;
  uint64_t epoch;
};

thread_local std::vector<Frame> frames;

/// Forgets what was closed, perhaps by another thread, and sets the thread's routing key.
void prune_frames() {
  std::erase_if(frames, [](const Frame& frame) { return !frame.membership->open; });
  c10::impl::tls_set_dispatch_key_included(kRoutingKey, !frames.empty());
}

bool in_this_thread(const Scope* scope) {
  return std::ranges::any_of(
      frames, [&](const Frame& frame) { return frame.membership->scope.get() == scope; });
}

std::shared_ptr<Membership> add_member(LiveScope& live) {
  auto membership = std::make_shared<Membership>();
  membership->scope = live.scope;
  frames.push_back({membership, nullptr, 0});
  ++live.members;
  prune_frames();
  return membership;
}

void forget_codes_outside_scopes(const Registry& registry) {
  WeightCodeCache::instance().sweep([&](const c10::TensorImpl* weight) {
    return std::ranges::any_of(
        registry.scopes, [&](const LiveScope& live) { return live.scope->covers(weight); });
  });
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
        false, "te_int8::AutocastGuard: expected each glob to match a layer, got ", what, " \"", glob,
        "\", which matches none of:", names);
  }
}

const char* name_of(Mode mode) {
  switch (mode) {
    case Mode::QAT: return "Mode::QAT";
    case Mode::Inference: return "Mode::Inference";
    case Mode::Off: return "Mode::Off";
  }
  return "?";
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
  for (const auto& rule : recipe_.rule_recipes()) rule_backends.push_back(resolve_backend(rule.backend()));
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
    scoped.quantized = std::make_shared<QuantizedLayer>(
        names.front(), mode_, config, *layer_backend, activations);
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
  auto& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  for (const auto& scoped : layers_) {
    replaced_.push_back(&scoped);
    for (const auto& slot : scoped.layer.slots) {
      const auto found = registry.slots.find({slot.parent.get(), slot.key});
      if (!scoped.replacement && found == registry.slots.end()) continue;  // shows the original already
      auto& stack = registry.slots[{slot.parent.get(), slot.key}];
      if (stack.entries.empty()) stack.original = slot.child;
      std::shared_ptr<torch::nn::Module> child = scoped.replacement;
      if (!child) child = scoped.layer.linear;  // full precision inside a scope that quantizes it
      stack.entries.push_back({this, child});
      slot.parent->replace_module(slot.key, child);
    }
  }
}

void Scope::restore() noexcept {
  auto& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  const torch::nn::Module* parent = nullptr;
  torch::OrderedDict<std::string, std::shared_ptr<torch::nn::Module>> children;
  for (const auto* scoped : replaced_) {
    for (const auto& slot : scoped->layer.slots) {
      const auto found = registry.slots.find({slot.parent.get(), slot.key});
      if (found == registry.slots.end()) continue;
      auto& stack = found->second;
      const auto ours = std::ranges::find(stack.entries, this, &SlotStack::Entry::scope);
      if (ours == stack.entries.end()) continue;
      const auto shown = stack.top();
      stack.entries.erase(ours);
      if (parent != slot.parent.get()) {
        parent = slot.parent.get();
        children = parent->named_children();
      }
      const auto* current = children.find(slot.key);
      if (current != nullptr && *current == shown && shown != stack.top()) {
        slot.parent->replace_module(slot.key, stack.top());
      }
      if (stack.entries.empty()) registry.slots.erase(found);
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
      line.bias_fused = line.calls > 0 && scoped.bias().defined() && count.fused_biases == line.calls;
    }
    report.layers.push_back(std::move(line));
  }
  for (const auto& other : others_) {
    report.layers.push_back(
        {.name = other.name, .type = c10::demangle(typeid(*other.module).name()),
         .action = "full precision", .reason = other.reason, .backend = "", .bias_fused = false,
         .calls = 0});
  }
  return report;
}

Scope::Index::Known::Known(const ScopedLayer& scoped)
    : original_{&scoped.layer.weight(), decltype(Member::impl)(scoped.layer.weight().getIntrusivePtr())},
      replacement_(original_),
      storage_(scoped.weight().storage().getWeakStorageImpl()),
      live_(scoped.weight().unsafeGetTensorImpl()) {
  if (const auto& layer = scoped.replacement) {
    replacement_ = {&layer->weight, decltype(Member::impl)(layer->weight.getIntrusivePtr())};
  }
}

bool Scope::Index::Known::changed() const {
  const auto reassigned = [](const Member& member) {
    return member.tensor->unsafeGetTensorImpl() != member.impl._unsafe_get_target();
  };
  return reassigned(original_) || reassigned(replacement_) ||
         live_->unsafe_storage().unsafeGetStorageImpl() != storage_._unsafe_get_target();
}

bool Scope::Index::misses(const at::Tensor& operand, bool transposed) const {
  // Most matmuls end here: their operand does not look like the transpose of a row-major weight.
  if (all_row_major && transposed && operand.stride(0) != 1 && operand.size(0) > 1) return false;
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

std::shared_ptr<Membership> enter_scope(
    torch::nn::Module& root, Mode mode, const Recipe& recipe) {
  install_deferred_kernels();
  install_routing_kernels();
  auto& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  prune_frames();
  for (auto& live : registry.scopes) {
    const bool innermost = !frames.empty() && frames.back().membership->scope == live.scope;
    if (live.scope->is_for(root, mode, recipe) && (innermost || !in_this_thread(live.scope.get()))) {
      return add_member(live);
    }
  }

  const auto scope = std::make_shared<Scope>(root, mode, recipe);
  for (const auto& live : registry.scopes) {
    if (in_this_thread(live.scope.get())) continue;
    if (const auto* layer = scope->shared_layer(*live.scope)) {
      TORCH_CHECK(
          false, "te_int8::AutocastGuard: expected layer '", layer->layer.names.front(),
          "' to be unguarded or guarded by the same model, mode and recipe, got a scope of another "
          "thread over it in ",
          name_of(live.scope->mode()),
          "; use the same model, mode and recipe, or join that scope with its guard's attach()");
    }
  }
  scope->replace();  // undone by ~Scope if it throws
  registry.scopes.push_back({scope, 0});
  return add_member(registry.scopes.back());
}

std::shared_ptr<Membership> join_scope(const std::shared_ptr<Scope>& scope) {
  auto& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  const auto live = std::ranges::find(registry.scopes, scope, &LiveScope::scope);
  TORCH_INTERNAL_ASSERT(live != registry.scopes.end(), "te_int8: the guard's scope has ended");
  return add_member(*live);
}

void leave_scope(const std::shared_ptr<Membership>& membership) noexcept {
  auto& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  membership->open = false;
  prune_frames();
  const auto live = std::ranges::find(registry.scopes, membership->scope, &LiveScope::scope);
  if (live == registry.scopes.end() || --live->members > 0) return;
  const auto scope = std::move(live->scope);
  registry.scopes.erase(live);
  scope->restore();
  forget_codes_outside_scopes(registry);
}

namespace {

/// The rows of the layer's live weight that `weight` is a view of, if it is one.
std::optional<WeightRows> match(
    const ScopedLayer& scoped, const torch::Tensor& weight, bool transposed) {
  const auto& live = scoped.weight();
  if (!live.defined() || live.dim() != 2 || live.scalar_type() != weight.scalar_type() ||
      live.storage().unsafeGetStorageImpl() != weight.storage().unsafeGetStorageImpl()) {
    return std::nullopt;
  }
  const int64_t row = transposed ? 1 : 0;
  const int64_t count = weight.size(row);
  const int64_t depth = weight.size(1 - row);
  const int64_t stride = live.stride(0);
  const int64_t offset = weight.storage_offset() - live.storage_offset();
  const int64_t first = stride > 0 ? offset / stride : 0;
  if (depth != live.size(1) || (count > 1 && weight.stride(row) != stride) ||
      (depth > 1 && weight.stride(1 - row) != live.stride(1)) || offset != first * stride ||
      first < 0 || first + count > live.size(0)) {
    return std::nullopt;
  }
  // A detached view asks for no gradient of the parameter.
  const bool same_history =
      !at::GradMode::is_enabled() || weight.requires_grad() == live.requires_grad();
  if (count == live.size(0) && same_history) return WeightRows{live, 0};
  return WeightRows{transposed ? weight.t() : weight, first};
}

std::optional<Match> match_in(
    const Scope::Index& index, const torch::Tensor& weight, bool transposed) {
  const auto found = index.by_storage.find(weight.storage().unsafeGetStorageImpl());
  if (found == index.by_storage.end()) return std::nullopt;
  for (const auto* scoped : found->second) {
    if (auto part = match(*scoped, weight, transposed)) return Match{scoped, std::move(*part)};
  }
  return std::nullopt;
}

std::optional<RoutedLayer> in_int8(std::shared_ptr<Scope> scope, Match match) {
  if (!match.layer->quantized) return std::nullopt;  // an inner scope keeps it in full precision
  return RoutedLayer{std::move(scope), std::move(match)};
}

/// For a thread that has the key but no membership: autograd's, which inherit the key of the thread that
/// called backward. Any open scope counts, the latest first.
std::optional<RoutedLayer> find_inherited(const torch::Tensor& weight, bool transposed) {
  auto& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  for (auto live = registry.scopes.rbegin(); live != registry.scopes.rend(); ++live) {
    if (auto match = match_in(*live->scope->index(), weight, transposed)) {
      return in_int8(live->scope, std::move(*match));
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<RoutedLayer> find_layer(const torch::Tensor& weight, bool transposed) {
  if (weight.dim() != 2 || !weight.has_storage()) return std::nullopt;
  if (frames.empty()) return find_inherited(weight, transposed);
  bool closed = false;
  for (bool again = true; again;) {
    again = false;
    for (auto frame = frames.rbegin(); frame != frames.rend(); ++frame) {
      if (!frame->membership->open) {
        closed = true;
        continue;
      }
      const auto& scope = frame->membership->scope;
      if (const auto epoch = scope->index_epoch(); frame->epoch != epoch) {
        frame->index = scope->index();
        frame->epoch = epoch;
      }
      if (auto match = match_in(*frame->index, weight, transposed)) {
        return in_int8(nullptr, std::move(*match));
      }
    }
    for (auto& frame : frames) {
      if (frame.membership->open && frame.index->misses(weight, transposed)) {
        frame.membership->scope->rebuild_index();
        again = true;
      }
    }
  }
  if (closed) prune_frames();
  return std::nullopt;
}

}  // namespace te_int8::inline v0::detail
