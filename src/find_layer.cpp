// Whether a matmul's operand is a weight that a scope covers, and what else a scope is told of tensors.
#include <algorithm>
#include <optional>
#include <utility>

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/graph_task.h>

#include "frames.h"
#include "registry.h"
#include "routing.h"

namespace te_int8::inline v0::detail {
namespace {

/// Several weights may lie in one storage, as aliases or as parts of each other: the one that the
/// operand was made from comes first, then one that it is the whole of.
std::optional<Match> match_in(
    const Scope::Index& index, const torch::Tensor& operand, bool transposed, Operation operation) {
  const auto found = index.by_storage.find(operand.storage().unsafeGetStorageImpl());
  if (found == index.by_storage.end()) return std::nullopt;
  const auto& candidates = found->second;
  const auto* base = candidates.size() > 1 ? base_of(operand).unsafeGetTensorImpl() : nullptr;
  std::optional<Match> best;
  for (const auto* layers : candidates) {
    if (layers->operation() != operation) continue;
    auto part = part_of(layers->weight(), operand, transposed, operation);
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
std::optional<RoutedLayer> find_inherited(const torch::Tensor& operand, bool transposed, Operation operation) {
  const bool in_autograd = torch::autograd::get_current_graph_task_id() != -1;
  {
    const std::lock_guard lock(registry_mutex());
    auto& scopes = live_scopes();
    for (auto live = scopes.rbegin(); live != scopes.rend(); ++live) {
      auto index = live->scope->index();
      auto match = match_in(*index, operand, transposed, operation);
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

std::optional<RoutedLayer> find_layer(const torch::Tensor& operand, bool transposed, Operation operation) {
  if (!has_dimensions_for(operation, operand.dim()) || !operand.has_storage()) return std::nullopt;
  auto& frames = thread_frames();
  if (frames.empty()) return find_inherited(operand, transposed, operation);
  if (!std::ranges::all_of(
          frames, [](const Frame& frame) { return frame.membership->open.load(); })) {
    prune_frames();  // another thread has ended a scope of this one: its model is not ours to keep
  }
  if (transposed && !may_be_a_transpose(operand)) return std::nullopt;
  for (bool again = true; again;) {
    again = false;
    for (auto frame = frames.rbegin(); frame != frames.rend(); ++frame) {
      auto& scope = frame->current_scope();
      if (frame->index->full_precision_assigned()) {
        scope.rebuild_index();
        again = true;
      } else if (auto match = match_in(*frame->index, operand, transposed, operation); match && !again) {
        return in_int8({std::move(*match)});
      }
    }
    if (again) continue;
    for (auto& frame : frames) {
      auto& scope = *frame.membership->scope;
      if (!frame.index->assigned() && !frame.index->moved(operand)) continue;
      const auto successor = scope.successor_of(operand, transposed, operation);
      scope.rebuild_index();
      if (successor.defined()) {
        return find_layer(transposed ? successor.t() : successor, transposed, operation);
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
    auto& scope = frame.current_scope();
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
