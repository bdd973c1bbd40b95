// Codes of activations, which outlive the call that made them where an activation feeds several layers.
//
// What LibTorch does not tell of an activation, and what is done about it:
//   - raw pointers write unseen: a layer that meets the same activation again quantizes it again,
//     so only different layers share;
//   - inference tensors have no version: they are never shared.
// Codes are shared on one stream only: waiting for another would take an event for each activation, which costs more
// than to make them again.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <te_int8/detail/cached_codes.h>

namespace te_int8::inline v0::detail {

/// The codes of activations that are still alive. One in a scope.
class ActivationCodes {
 public:
  /// The operand of x for the layer `consumer`: shared with other layers that read the same values.
  std::shared_ptr<Operand> get(const at::Tensor& x, OperandForm form, const void* consumer) {
    if (!shareable(x)) return Operand::make(x, form);
    const OutsideInference outside;
    {
      const std::lock_guard lock(mutex_);
      for (auto& entry : entries_) {
        if (!entry.holds(x, form)) continue;
        if (std::ranges::find(entry.consumers, consumer) != entry.consumers.end()) break;
        entry.consumers.push_back(consumer);
        return entry.shaped_like(x);
      }
    }
    const auto operand = Operand::make(x, form);
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const Entry& entry) {
      return entry.state.expired() || entry.holds(x, form);
    });
    if (entries_.size() == kCapacity) entries_.erase(entries_.begin());
    entries_.push_back(
        {LaidOutState(x), WeakTensor(base_of(x).getIntrusivePtr()), form, operand, StreamStamp(x.device()), {consumer}});
    return operand;
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    entries_.clear();
  }

 private:
  static constexpr std::size_t kCapacity = 16;

  using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

  struct Entry {
    LaidOutState state;
    WeakTensor base;  ///< whose views count their versions together; other tensors may start anew
    OperandForm form;
    std::shared_ptr<Operand> operand;
    StreamStamp made;
    std::vector<const void*> consumers;

    bool holds(const at::Tensor& x, OperandForm wanted) const {
      return form == wanted && base._unsafe_get_target() == base_of(x).unsafeGetTensorImpl() &&
             made.is_current() &&
             (state.is_state_of(x) || (form != OperandForm::ColumnCodes && state.has_rows_of(x)));
    }
    std::shared_ptr<Operand> shaped_like(const at::Tensor& x) const {
      if (form == OperandForm::ColumnCodes || operand->data().sizes() == x.sizes()) return operand;
      const auto scales = form == OperandForm::TensorCodes
                              ? operand->scales()
                              : operand->scales().view(x.sizes().slice(0, x.dim() - 1));
      return std::make_shared<Operand>(operand->data().view(x.sizes()), scales, form);
    }
  };

  static bool shareable(const at::Tensor& x) {
    return !x.is_inference() && !x.is_neg() && x.has_storage() && x.numel() > 0;
  }

  std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace te_int8::inline v0::detail
