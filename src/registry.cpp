// The process's registry: which scopes are open, which threads take part in them, and whether a
// matmul's operand is a weight that one of them covers.
#include "registry.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>
#include <utility>

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/graph_task.h>

#include <te_int8/detail/deferred.h>
#include <te_int8/detail/panel_cache.h>
#include <te_int8/detail/scope.h>
#include <te_int8/guard.h>

#include "routing.h"

namespace te_int8::inline v0::detail {

std::recursive_mutex& registry_mutex() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

WeightCodeCache& WeightCodeCache::instance() {
  // Never destroyed: a backward may still come while the process ends.
  static auto* cache = new WeightCodeCache;
  return *cache;
}

Readers& Readers::instance() {
  static auto* readers = new Readers;
  return *readers;
}

Way& Way::of_thread() {
  static thread_local Way way;
  return way;
}

PanelCache& PanelCache::instance() {
  static auto* cache = new PanelCache;
  return *cache;
}

void forget_codes(const c10::TensorImpl* weight) noexcept {
  WeightCodeCache::instance().forget(weight);
}

namespace {

struct LiveScope {
  std::shared_ptr<Scope> scope;
  int64_t members;
};

/// The scopes that are open. Guarded by registry_mutex(); never destroyed, as threads may outlive
/// static objects.
std::vector<LiveScope>& live_scopes() {
  static auto* scopes = new std::vector<LiveScope>;
  return *scopes;
}

/// A scope as one thread sees it, with its own pointer to the index.
struct Frame {
  std::shared_ptr<Membership> membership;
  std::shared_ptr<const Scope::Index> index;
  uint64_t epoch;
};

/// The calling thread's scopes, the innermost last. Usable also while the thread ends: a guard with
/// static storage duration outlives the thread's own objects.
std::vector<Frame>& thread_frames() {
  static thread_local std::vector<Frame>* frames = nullptr;
  struct Owner {
    ~Owner() { delete std::exchange(frames, nullptr); }
  };
  if (frames == nullptr) {
    frames = new std::vector<Frame>;
    static thread_local const Owner owner;
  }
  return *frames;
}

/// Forgets what was closed, perhaps by another thread, and sets the thread's routing key. Models that only
/// a closed scope held die at its end; as that may run anything, no lock may be held.
void prune_frames() {
  auto& frames = thread_frames();
  const auto closed = std::stable_partition(
      frames.begin(), frames.end(), [](const Frame& frame) { return frame.membership->open.load(); });
  const std::vector<Frame> last(std::make_move_iterator(closed), std::make_move_iterator(frames.end()));
  frames.erase(closed, frames.end());
  c10::impl::tls_set_dispatch_key_included(kRoutingKey, !frames.empty());
}

void warn_if_routing_was_lost() {
  const bool member = std::ranges::any_of(
      thread_frames(), [](const Frame& frame) { return frame.membership->open.load(); });
  if (!member || c10::impl::tls_is_dispatch_key_included(kRoutingKey)) return;
  TORCH_WARN(
      "te_int8::AutocastGuard: expected the scope to end inside the block it was opened in, got the "
      "end of a block that puts LibTorch's thread-local state back (c10::InferenceMode, "
      "at::ThreadLocalStateGuard) while the scope was open: what this thread ran since then was in "
      "full precision. Open the guard outside of such a block, or end it inside");
}

bool in_this_thread(const Scope* scope) {
  return std::ranges::any_of(thread_frames(), [&](const Frame& frame) {
    return frame.membership->scope.get() == scope;
  });
}

std::shared_ptr<Membership> add_member(LiveScope& live) {
  auto membership = std::make_shared<Membership>();
  membership->scope = live.scope;
  thread_frames().push_back({membership, nullptr, 0});
  ++live.members;
  c10::impl::tls_set_dispatch_key_included(kRoutingKey, true);
  return membership;
}

void forget_codes_outside_scopes() {
  std::vector<std::shared_ptr<const Scope::Index>> indexes;
  for (const auto& live : live_scopes()) indexes.push_back(live.scope->index());
  WeightCodeCache::instance().sweep([&](const c10::TensorImpl* weight) {
    return std::ranges::any_of(indexes, [&](const auto& index) { return index->covers(weight); });
  });
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

std::shared_ptr<Membership> enter_scope(torch::nn::Module& root, Mode mode, const Recipe& recipe) {
  install_deferred_kernels();
  install_routing_kernels();
  keep_routing();
  const std::lock_guard lock(registry_mutex());
  auto& scopes = live_scopes();
  forget_codes_outside_scopes();
  for (auto& live : scopes) {
    if (live.scope->is_for(root, mode, recipe) && !in_this_thread(live.scope.get())) {
      return add_member(live);
    }
  }

  const auto scope = std::make_shared<Scope>(root, mode, recipe);
  for (const auto& live : scopes) {
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
  scopes.push_back({scope, 0});
  return add_member(scopes.back());
}

std::shared_ptr<Membership> join_scope(const std::shared_ptr<Scope>& scope) {
  keep_routing();
  const std::lock_guard lock(registry_mutex());
  auto& scopes = live_scopes();
  const auto live = std::ranges::find(scopes, scope, &LiveScope::scope);
  TORCH_INTERNAL_ASSERT(live != scopes.end(), "te_int8: the guard's scope has ended");
  return add_member(*live);
}

void keep_routing() {
  warn_if_routing_was_lost();
  prune_frames();
}

void leave_scope(const std::shared_ptr<Membership>& membership) noexcept {
  try {
    warn_if_routing_was_lost();
  } catch (...) {  // a handler that makes errors of warnings; a destructor cannot pass one on
  }
  membership->open = false;
  prune_frames();
  const std::lock_guard lock(registry_mutex());
  auto& scopes = live_scopes();
  const auto live = std::ranges::find(scopes, membership->scope, &LiveScope::scope);
  if (live == scopes.end() || --live->members > 0) return;
  const auto scope = std::move(live->scope);
  scopes.erase(live);
  scope->restore();
  forget_codes_outside_scopes();
}

namespace {

/// Several weights may lie in one storage, as aliases or as parts of each other: the one that the
/// operand was made from comes first, then one that it is the whole of.
std::optional<Match> match_in(
    const Scope::Index& index, const torch::Tensor& operand, bool transposed) {
  const auto found = index.by_storage.find(operand.storage().unsafeGetStorageImpl());
  if (found == index.by_storage.end()) return std::nullopt;
  const auto& candidates = found->second;
  const auto* base = candidates.size() > 1 ? base_of(operand).unsafeGetTensorImpl() : nullptr;
  std::optional<Match> best;
  for (const auto* layers : candidates) {
    auto part = rows_of(layers->weight(), operand, transposed);
    if (!part) continue;
    if (layers->weight().unsafeGetTensorImpl() == base) return Match{layers, std::move(*part)};
    const bool whole = operand.size(transposed ? 1 : 0) == layers->weight().size(0);
    if (!best || whole) best = Match{layers, std::move(*part)};
  }
  return best;
}

std::optional<RoutedLayer> in_int8(RoutedLayer routed) {
  // An inner scope may keep it in full precision.
  if (routed.match.layers->quantized() == nullptr) return std::nullopt;
  return routed;
}

/// A thread that has the key but no membership: autograd's, which inherit the key of the thread that
/// called backward. Any open scope counts, the latest first. Any other thread got the key from a block
/// that put LibTorch's thread-local state back, computes in full precision and gives the key up.
std::optional<RoutedLayer> find_inherited(const torch::Tensor& operand, bool transposed) {
  const bool in_autograd = torch::autograd::get_current_graph_task_id() != -1;
  {
    const std::lock_guard lock(registry_mutex());
    auto& scopes = live_scopes();
    for (auto live = scopes.rbegin(); live != scopes.rend(); ++live) {
      auto index = live->scope->index();
      auto match = match_in(*index, operand, transposed);
      if (!match) continue;
      if (in_autograd) return in_int8({std::move(*match), live->scope, std::move(index)});
      TORCH_WARN_ONCE(
          "te_int8::AutocastGuard: layer '", match->layers->first().layer.names.front(),
          "' runs in full precision in a thread that has LibTorch's thread-local state of a scope, but "
          "is not in it; let the thread join by the guard's attach()");
      break;
    }
  }
  if (!in_autograd) prune_frames();
  return std::nullopt;
}

/// Whether `operand` can be W^T of a weight: then the weight holds its storage too, or it is known as a view (of a
/// weight that has got other data since), or it is so small that W^T may be W itself. Spares most matmuls that
/// are no layer's the scan of all layers.
bool may_be_a_transpose(const torch::Tensor& operand) {
  return operand.numel() <= 1 || operand.is_inference() || operand.is_view() ||
         operand.unsafeGetTensorImpl()->unsafe_storage().use_count() > 1;
}

}  // namespace

std::optional<RoutedLayer> find_layer(const torch::Tensor& operand, bool transposed) {
  if (operand.dim() != 2 || !operand.has_storage()) return std::nullopt;
  auto& frames = thread_frames();
  if (frames.empty()) return find_inherited(operand, transposed);
  if (!std::ranges::all_of(
          frames, [](const Frame& frame) { return frame.membership->open.load(); })) {
    prune_frames();  // another thread has ended a scope of this one: its model is not ours to keep
  }
  if (transposed && !may_be_a_transpose(operand)) return std::nullopt;
  for (bool again = true; again;) {
    again = false;
    for (auto frame = frames.rbegin(); frame != frames.rend(); ++frame) {
      auto& scope = *frame->membership->scope;
      if (const auto epoch = scope.index_epoch(); frame->epoch != epoch) {
        frame->index = scope.index();
        frame->epoch = epoch;
      }
      if (frame->index->full_precision_assigned()) {
        scope.rebuild_index();
        again = true;
      } else if (auto match = match_in(*frame->index, operand, transposed); match && !again) {
        return in_int8({std::move(*match)});
      }
    }
    if (again) continue;
    for (auto& frame : frames) {
      auto& scope = *frame.membership->scope;
      if (!frame.index->assigned() && !frame.index->moved(operand)) continue;
      const auto successor = scope.successor_of(operand, transposed);
      scope.rebuild_index();
      if (successor.defined()) {
        return find_layer(transposed ? successor.t() : successor, transposed);
      }
      again = true;
    }
  }
  return std::nullopt;
}

namespace {

void note_write_in(Scope& scope, const Scope::Index& index, const torch::Tensor& written) {
  scope.note_write_to_activation(written);
  const auto found = index.by_storage.find(written.storage().unsafeGetStorageImpl());
  if (found == index.by_storage.end()) return;
  const bool in_graph = capture_of(written.device()) != 0;
  for (const auto* layers : found->second) {
    const auto* weight = layers->weight().unsafeGetTensorImpl();
    if (in_graph || weight != written.unsafeGetTensorImpl()) WeightCodeCache::instance().note_write(weight, in_graph);
  }
}

}  // namespace

void note_write(const torch::Tensor& written) {
  if (!written.has_storage()) return;
  auto& frames = thread_frames();
  if (frames.empty()) {  // autograd's: see find_inherited
    const std::lock_guard lock(registry_mutex());
    for (const auto& live : live_scopes()) note_write_in(*live.scope, *live.scope->index(), written);
    return;
  }
  for (auto& frame : frames) {
    if (!frame.membership->open.load()) continue;
    auto& scope = *frame.membership->scope;
    if (const auto epoch = scope.index_epoch(); !frame.index || frame.epoch != epoch) {
      frame.index = scope.index();
      frame.epoch = epoch;
    }
    note_write_in(scope, *frame.index, written);
  }
}

std::shared_ptr<ActivationCodes> activations_of_thread() {
  const auto& frames = thread_frames();
  const auto innermost = std::find_if(frames.rbegin(), frames.rend(), [](const Frame& frame) {
    return frame.membership->open.load() && frame.membership->scope->activations() != nullptr;
  });
  return innermost == frames.rend() ? nullptr : innermost->membership->scope->activations();
}

}  // namespace te_int8::inline v0::detail

namespace te_int8::inline v0 {

void refresh(torch::nn::Module& model) {
  const std::lock_guard lock(detail::registry_mutex());
  std::unordered_set<const torch::nn::Module*> modules;
  for (const auto& module : model.modules(/*include_self=*/false)) modules.insert(module.get());
  modules.insert(&model);
  const auto found = detail::LayerFinder::find(model);
  for (const auto& layer : found.layers) modules.insert(&layer.owner());
  for (const auto& live : detail::live_scopes()) {
    if (!live.scope->covers_any(modules)) continue;  // another model's, perhaps another thread's
    live.scope->rebuild_index();                     // so that the layers know what was assigned
    live.scope->forget_activations();
  }
  detail::PanelCache::instance().clear();  // its buffers' panels, and others', which are made again
  auto& cache = detail::WeightCodeCache::instance();
  for (const auto& parameter : model.parameters()) cache.forget(parameter.unsafeGetTensorImpl());
  for (const auto& layer : found.layers) {
    cache.forget(layer.weight().unsafeGetTensorImpl());
  }
}

}  // namespace te_int8::inline v0
