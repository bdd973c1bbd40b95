// Codes that linear_prequantized is given call after call, packed once.
#pragma once

#include <mutex>
#include <unordered_map>

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/types.h>

#include <te_int8/detail/cached_codes.h>
#include <te_int8/detail/packed_codes.h>

namespace te_int8::inline v0::detail {

/// Packed codes by the identity of the codes. One in a process. Panels of codes that are gone go with the next
/// codes that are new.
///
/// Their version tells when codes change. What it does not tell: writes by raw pointers, `.data`, NumPy and DLPack;
/// after those there is te_int8::refresh. Inference tensors have no version, and memory that LibTorch did not
/// allocate is somebody's who may write to it: such codes are packed at every call.
class PanelCache {
 public:
  TE_INT8_API static PanelCache& instance();

  /// The panels of `codes`; undefined where the back end reads codes as they are.
  at::Tensor get(const at::Tensor& codes) {
    // A tracer's tensors have no data.
    if (at::isTensorSubclassLike(codes) || !can_pack(codes)) return {};
    if (codes.is_inference() || codes.storage().allocator() == nullptr) return pack(codes);
    const auto* key = codes.unsafeGetTensorImpl();
    {
      const std::lock_guard lock(mutex_);
      const auto found = panels_.find(key);
      if (found != panels_.end() && found->second.state.is_state_of(codes)) return found->second.panels;
    }
    // The state before the codes are read: a write meanwhile makes the entry out of date.
    Entry entry{WeakTensor(codes.getIntrusivePtr()), LaidOutState(codes), {}};
    const auto panels = entry.panels = pack(codes);
    const std::lock_guard lock(mutex_);
    std::erase_if(panels_, [](const auto& item) { return item.second.codes.expired(); });
    panels_.insert_or_assign(key, std::move(entry));
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
  using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

  struct Entry {
    WeakTensor codes;  ///< pinned, so that the address cannot come back as another tensor
    LaidOutState state;
    at::Tensor panels;
  };
  static at::Tensor pack(const at::Tensor& codes) {
    const OutsideInference outside;
    return pack_codes(codes);
  }

  mutable std::mutex mutex_;
  std::unordered_map<const c10::TensorImpl*, Entry> panels_;
};

}  // namespace te_int8::inline v0::detail
