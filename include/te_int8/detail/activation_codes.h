// Codes of activations, which outlive the call that made them where an activation feeds several layers.
//
// What LibTorch does not tell of an activation, and what is done about it:
//   - raw pointers write unseen: a layer that meets the same activation again quantizes it again,
//     so only different layers share;
//   - inference tensors have no version: they are never shared.
// Codes are shared on one stream only: waiting for another would take an event for each activation, which costs more
// than to make them again.
//
// An operation that makes an activation can leave its codes in the same pass over memory (src/producers.cpp). Whether
// anybody will read them is known from its last time: an operation is recognized by its place: its number among those of
// its kind since a quantized layer was called, and which layer that was. A wrong guess costs time, never a bit: codes are
// found by the tensor that they are of.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include <te_int8/detail/cached_codes.h>

namespace te_int8::inline v0::detail {

/// Where in its thread an operation makes an activation.
struct Place {
  const void* after = nullptr;  ///< the weight of the quantized layer that was called last
  int kind = 0;                 ///< of operation
  int number = 0;               ///< of its kind since then
  bool recorded = false;        ///< in grad mode: an evaluation teaches nothing about training
  auto operator<=>(const Place&) const = default;
};

/// The calling thread's way through a model.
class Way {
 public:
  static constexpr std::size_t kKinds = 8;

  TE_INT8_API static Way& of_thread();

  void passes(const void* weight) {
    after_ = weight;
    numbers_.fill(0);
  }
  /// The place of the next operation of a kind; none where so many came that nobody will follow.
  std::optional<Place> next(int kind) {
    constexpr int kMost = 64;
    auto& number = numbers_.at(static_cast<std::size_t>(kind));
    if (number == kMost) return std::nullopt;
    return Place{after_, kind, number++, at::GradMode::is_enabled()};
  }

 private:
  const void* after_ = nullptr;
  std::array<int, kKinds> numbers_{};
};

/// How many layers read the codes by row of what was made at a place last. One in a process, as scopes may last for a step.
class Readers {
 public:
  TE_INT8_API static Readers& instance();

  std::size_t at(const Place& place) const {
    const std::lock_guard lock(mutex_);
    const auto found = count_.find(place);
    return found == count_.end() ? 0 : found->second;
  }
  void add(const Place& place) {
    const std::lock_guard lock(mutex_);
    ++count_[place];
  }
  /// Begins to count anew.
  std::size_t take(const Place& place) {
    constexpr std::size_t kMost = 1 << 16;  // places of models that are gone
    const std::lock_guard lock(mutex_);
    if (count_.size() == kMost) count_.clear();
    return std::exchange(count_[place], 0);
  }

 private:
  mutable std::mutex mutex_;
  std::map<Place, std::size_t> count_;
};

/// The codes of activations that are still alive. One in a scope.
class ActivationCodes : public CodesInUse {
 public:
  /// Of a scope's recipe.
  ActivationCodes(Precision preactivations, Backend backend) : preactivations_(preactivations), backend_(backend) {}
  Precision preactivations() const { return preactivations_; }
  Backend backend() const { return backend_; }

  /// The operand of x for the layer `consumer`: shared with other layers that read the same values.
  std::shared_ptr<Operand> get(const at::Tensor& x, OperandForm form, const void* consumer) {
    if (!shareable(x)) return Operand::make(x, form);
    const OutsideInference outside;
    Entry entry{LaidOutState(x), weak_base_of(x), form, nullptr, StreamStamp(x.device()), {}, {}, 0, nullptr};
    {
      const std::lock_guard lock(mutex_);
      for (auto& known : entries_) {
        if (!known.holds(x, form)) continue;
        if (known.place) Readers::instance().add(*known.place);
        const bool again = std::ranges::find(known.consumers, consumer) != known.consumers.end();
        if (!known.operand || again) {
          if (!again) entry.consumers = known.consumers;
          entry.place = known.place;
          entry.source = known.source;
          break;
        }
        known.consumers.push_back(consumer);
        auto operand = known.shaped_like(x);
        if (known.consumers.size() == known.readers) known.operand.reset();
        return operand;
      }
    }
    entry.operand = Operand::make(x, form);
    entry.consumers.push_back(consumer);
    auto operand = entry.shaped_like(x);
    add(std::move(entry), x);
    return operand;
  }

  /// y was made at this place, its codes by row with it unless `codes` is null, which can be had again from `source` unless
  /// that is null. They are kept for as many readers as there were the last time.
  void made(
      const at::Tensor& y, const Place& place, std::shared_ptr<Operand> codes, std::shared_ptr<const CodesSource> source) {
    if (!shareable(y)) return;
    const OutsideInference outside;
    add({LaidOutState(y), weak_base_of(y), OperandForm::RowCodes, std::move(codes), StreamStamp(y.device()), {}, place,
         Readers::instance().take(place), std::move(source)}, y);
  }

  /// A norm with this gamma has given a result, with its codes or without.
  void note_norm(const at::Tensor& gamma, bool with_codes) {
    constexpr std::size_t kMost = 4096;  // gammas that are made anew at each call
    const std::lock_guard lock(mutex_);
    if (norms_.size() == kMost) std::erase_if(norms_, [](const auto& norm) { return norm.second.gamma.expired(); });
    if (norms_.size() == kMost) return;
    auto& norm = norms_.try_emplace(gamma.unsafeGetTensorImpl(), NormCount{WeakTensor(gamma.getIntrusivePtr())}).first->second;
    ++norm.results;
    if (with_codes) ++norm.with_codes;
  }
  /// How many results, and how many of them with codes.
  std::pair<int64_t, int64_t> count_of_norm(const at::Tensor& gamma) const {
    const std::lock_guard lock(mutex_);
    const auto found = norms_.find(gamma.unsafeGetTensorImpl());
    return found == norms_.end() ? std::pair<int64_t, int64_t>() : std::pair(found->second.results, found->second.with_codes);
  }

  /// A tensor was written to: the versions of others that share its storage need not tell.
  void note_write(const at::Tensor& written) {
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const Entry& entry) { return entry.state.is_of_storage_of(written); });
  }

  /// Codes of activations that are gone need not wait for the next ones.
  void drop_dead() override {
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [](const Entry& entry) { return entry.state.expired(); });
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    entries_.clear();
  }

 private:
  static constexpr std::size_t kCapacity = 16;

  using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

  struct NormCount {
    WeakTensor gamma;  ///< pinned, so that its address does not come back
    int64_t results = 0, with_codes = 0;
  };

  static WeakTensor weak_base_of(const at::Tensor& x) { return WeakTensor(base_of(x).getIntrusivePtr()); }

  struct Entry {
    LaidOutState state;
    WeakTensor base;  ///< whose views count their versions together; other tensors may start anew
    OperandForm form;
    std::shared_ptr<Operand> operand;  ///< null: not made yet, or all expected readers have it
    StreamStamp made;
    std::vector<const void*> consumers;
    std::optional<Place> place;  ///< where the activation itself was made, if known
    std::size_t readers = 0;     ///< that are expected; 0: as many as come
    std::shared_ptr<const CodesSource> source;

    /// Whether the codes lie as x does.
    bool has_rows() const { return form == OperandForm::RowCodes || form == OperandForm::TensorCodes; }
    bool holds(const at::Tensor& x, OperandForm wanted) const {
      return form == wanted && base._unsafe_get_target() == base_of(x).unsafeGetTensorImpl() &&
             made.is_current() &&
             (state.is_state_of(x) || (has_rows() && state.has_rows_of(x)));
    }
    std::shared_ptr<Operand> shaped_like(const at::Tensor& x) const {
      if (!has_rows() || (!source && operand->data().sizes() == x.sizes())) return operand;
      const auto scales = form == OperandForm::TensorCodes
                              ? operand->scales()
                              : operand->scales().view(x.sizes().slice(0, x.dim() - 1));
      return Operand::view_of(operand, operand->data().view(x.sizes()), scales, source ? source->of(x) : nullptr);
    }
  };

  static bool shareable(const at::Tensor& x) {
    return !x.is_inference() && !x.is_neg() && !x.is_nested() && x.layout() == at::kStrided && x.has_storage() && x.numel() > 0;
  }

  void add(Entry added, const at::Tensor& x) {
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const Entry& entry) { return entry.state.expired() || entry.holds(x, added.form); });
    if (entries_.size() == kCapacity) entries_.erase(entries_.begin());
    entries_.push_back(std::move(added));
  }

  const Precision preactivations_;
  const Backend backend_;
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  std::map<const c10::TensorImpl*, NormCount> norms_;  ///< by gamma
};

}  // namespace te_int8::inline v0::detail
