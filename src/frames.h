// The scopes that are open, and those of each thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <te_int8/detail/scope.h>

#include "registry.h"

namespace te_int8::inline v0::detail {

struct LiveScope {
  std::shared_ptr<Scope> scope;
  int64_t members;
};

/// The scopes that are open. Guarded by registry_mutex(); never destroyed, as threads may outlive
/// static objects.
std::vector<LiveScope>& live_scopes();

/// A scope as one thread sees it, with its own pointer to the index.
struct Frame {
  std::shared_ptr<Membership> membership;
  std::shared_ptr<const Scope::Index> index;
  uint64_t epoch;

  /// The scope, whose index is then the one that it has now.
  Scope& current_scope() {
    auto& scope = *membership->scope;
    if (const auto now = scope.index_epoch(); !index || epoch != now) {
      index = scope.index();
      epoch = now;
    }
    return scope;
  }
};

/// The calling thread's scopes, the innermost last. Usable also while the thread ends: a guard with
/// static storage duration outlives the thread's own objects.
std::vector<Frame>& thread_frames();

/// Forgets what was closed, perhaps by another thread, and sets the thread's routing key. Models that only
/// a closed scope held die at its end; as that may run anything, no lock may be held.
void prune_frames();

}  // namespace te_int8::inline v0::detail
