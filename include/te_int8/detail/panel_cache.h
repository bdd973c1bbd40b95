// Codes that linear_prequantized is given call after call, packed once.
#pragma once

#include <mutex>
#include <unordered_map>

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/types.h>

#include <te_int8/detail/code_cache.h>
#include <te_int8/detail/packed_codes.h>

namespace te_int8::inline v0::detail {

/// Packed codes by the identity of the codes. One in a process. Panels of codes that are gone go with the next
/// codes that are new.
class PanelCache {
 public:
  TE_INT8_API static PanelCache& instance();

  /// The panels of `codes`; undefined where the back end reads codes as they are. Kept where every change of
  /// the codes is told by their version: not of inference tensors, which have none, nor where others hold the
  /// storage, who may count versions of their own.
  at::Tensor get(const at::Tensor& codes) {
    // A tracer's tensors have no data.
    if (at::isTensorSubclassLike(codes) || !can_pack(codes)) return {};
    if (codes.is_inference() || codes.is_view() || codes.storage().use_count() > 1) return pack(codes);
    const auto* key = codes.unsafeGetTensorImpl();
    {
      const std::lock_guard lock(mutex_);
      const auto found = panels_.find(key);
      if (found != panels_.end() && found->second.state.is_state_of(codes)) return found->second.panels;
    }
    const auto panels = pack(codes);
    const std::lock_guard lock(mutex_);
    std::erase_if(panels_, [](const auto& item) { return item.second.state.expired(); });
    panels_.insert_or_assign(key, Entry{LaidOutState(codes), panels});
    return panels;
  }

  /// After writes that nobody can see.
  void clear() {
    const std::lock_guard lock(mutex_);
    panels_.clear();
  }
  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return panels_.size();
  }

 private:
  struct Entry {
    LaidOutState state;
    at::Tensor panels;
  };
  static at::Tensor pack(const at::Tensor& codes) {
    const OutsideInference outside;
    return pack_codes(codes);
  }

  mutable std::mutex mutex_;
  // An address may come back as another tensor, but not with the same storage.
  std::unordered_map<const c10::TensorImpl*, Entry> panels_;
};

}  // namespace te_int8::inline v0::detail
