// The process's registry: which scopes are open, and which threads take part in them.
#include "registry.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>
#include <utility>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <te_int8/detail/deferred.h>
#include <te_int8/detail/panel_cache.h>
#include <te_int8/detail/scope.h>
#include <te_int8/guard.h>

#include "frames.h"
#include "routing.h"

namespace te_int8::inline v0::detail {

std::recursive_mutex& registry_mutex() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

std::vector<LiveScope>& live_scopes() {
  static auto* scopes = new std::vector<LiveScope>;
  return *scopes;
}

std::vector<Frame>& thread_frames() {
  static thread_local std::vector<Frame>* frames = nullptr;
  struct Deleter {
    ~Deleter() { delete std::exchange(frames, nullptr); }
  };
  if (frames == nullptr) {
    frames = new std::vector<Frame>;
    static thread_local const Deleter at_exit;
  }
  return *frames;
}

void prune_frames() {
  auto& frames = thread_frames();
  const auto closed = std::stable_partition(
      frames.begin(), frames.end(), [](const Frame& frame) { return frame.membership->open.load(); });
  const std::vector<Frame> last(std::make_move_iterator(closed), std::make_move_iterator(frames.end()));
  frames.erase(closed, frames.end());
  c10::impl::tls_set_dispatch_key_included(kRoutingKey, !frames.empty());
}

namespace {

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
    membership->scope->warn_of_folds();
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

}  // namespace te_int8::inline v0::detail

namespace te_int8::inline v0 {

void refresh(torch::nn::Module& model) {
  const std::lock_guard lock(detail::registry_mutex());
  std::unordered_set<const torch::nn::Module*> modules;
  for (const auto& module : model.modules(/*include_self=*/false)) modules.insert(module.get());
  modules.insert(&model);
  const auto found = detail::LayerFinder::find(model);
  for (const auto& layer : found.layers) modules.insert(layer.owner->module.get());
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
