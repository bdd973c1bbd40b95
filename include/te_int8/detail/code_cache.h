// Codes that outlive the call that made them: of weights, made once per state of the weight, and of
// activations that feed several layers.
//
// A state is told apart by storage and version; storages are pinned by weak pointers, so that an
// address cannot come back as another storage. What LibTorch does not tell, and what is done about
// it:
//   - torch::optim::SGD and `.data()` write without bumping the version: a weight's codes are also
//     dropped once a backward has produced its gradient;
//   - raw pointers write unseen: a layer that meets the same activation again quantizes it again,
//     so only different layers share; for weights there is te_int8::refresh;
//   - inference tensors have no version: their activations are never shared.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/types.h>

#include <te_int8/linear_function.h>

namespace te_int8::inline v0::detail {

/// A part of a storage and the version of what it holds.
class StorageState {
 public:
  explicit StorageState(const at::Tensor& tensor)
      : storage_(tensor.storage().getWeakStorageImpl()),
        version_(version_of(tensor)),
        dtype_(tensor.scalar_type()),
        offset_(tensor.storage_offset()) {}

  bool is_state_of(const at::Tensor& tensor) const {
    return tensor.storage().unsafeGetStorageImpl() == storage_._unsafe_get_target() &&
           version_of(tensor) == version_ && tensor.scalar_type() == dtype_ &&
           tensor.storage_offset() == offset_;
  }
  bool expired() const { return storage_.expired(); }

 private:
  static uint32_t version_of(const at::Tensor& tensor) {
    return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
  }
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  uint32_t version_;
  at::ScalarType dtype_;
  int64_t offset_;
};

/// An operand and the stream on which it was made, so that another stream waits for it.
class StampedOperand {
 public:
  explicit StampedOperand(std::shared_ptr<Operand> operand) : operand_(std::move(operand)) {
    const auto device = operand_->data().device();
    if (device.is_cpu() || device.is_meta()) return;
    stream_ = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
    ready_ = std::make_shared<c10::Event>(device.type());
    ready_->record(*stream_);
  }

  /// The operand, safe to use on the current stream.
  const std::shared_ptr<Operand>& get() const {
    if (stream_) {
      const auto now =
          c10::impl::VirtualGuardImpl(stream_->device_type()).getStream(stream_->device());
      if (now != *stream_) {
        ready_->block(now);
        for (const auto& tensor : {operand_->data(), operand_->scales()}) {
          if (tensor.defined()) tensor.record_stream(now);
        }
      }
    }
    return operand_;
  }

 private:
  std::shared_ptr<Operand> operand_;
  std::optional<c10::Stream> stream_;
  std::shared_ptr<c10::Event> ready_;
};

/// Codes that others will use are ordinary tensors, also where InferenceMode makes them: inference
/// tensors cannot be saved for a backward.
struct OutsideInference {
  c10::InferenceMode no_inference_mode{false};
  at::NoGradGuard no_grad;
  PlainTensorOps plain;
};

/// The codes of one weight.
class WeightCodes {
 public:
  explicit WeightCodes(const at::Tensor& weight)
      : weight_(weight.getIntrusivePtr()),
        state_(weight),
        sizes_(weight.sizes().vec()),
        strides_(weight.strides().vec()) {}

  std::shared_ptr<Operand> get(const at::Tensor& weight, OperandForm form) {
    const auto gradients = gradients_->load();
    if (!state_.is_state_of(weight) || weight.sizes() != at::IntArrayRef(sizes_) ||
        weight.strides() != at::IntArrayRef(strides_) || gradients != gradients_seen_ ||
        trained_ != weight.requires_grad() || had_gradient_ != has_gradient(weight) ||
        may_change_unseen(weight)) {
      drop();
      state_ = StorageState(weight);
      sizes_ = weight.sizes().vec();
      strides_ = weight.strides().vec();
      gradients_seen_ = gradients;
      trained_ = weight.requires_grad();
      had_gradient_ = has_gradient(weight);
    }
    auto& codes = forms_.at(static_cast<std::size_t>(form));
    if (!codes) {
      const OutsideInference outside;
      codes.emplace(Operand::make(weight, form));
    }
    return codes->get();
  }

  void drop() { forms_.fill(std::nullopt); }
  bool empty() const {
    return std::ranges::none_of(forms_, [](const auto& form) { return form.has_value(); });
  }

  const GradientCount& gradients() const { return gradients_; }
  /// Whether a backward may still come that counts here.
  bool awaited() const { return gradients_.use_count() > 1; }
  /// Whether the weight itself is gone.
  bool expired() const { return weight_.expired(); }
  /// Whether the codes may outlive the scope: nobody trains the weight.
  bool frozen() const {
    const auto weight = weight_.lock();
    return weight && !weight->requires_grad();
  }

 private:
  static bool has_gradient(const at::Tensor& weight) {
    return weight.requires_grad() && weight.is_leaf() && weight.grad().defined();
  }
  /// A gradient that is there may become a step at any time, and an inference tensor has no version.
  static bool may_change_unseen(const at::Tensor& weight) {
    return weight.is_inference() || has_gradient(weight);
  }

  c10::weak_intrusive_ptr<c10::TensorImpl> weight_;
  StorageState state_;
  std::vector<int64_t> sizes_, strides_;
  GradientCount gradients_ = std::make_shared<std::atomic<uint64_t>>(0);
  uint64_t gradients_seen_ = 0;
  bool trained_ = false, had_gradient_ = false;         ///< when the codes were made
  std::array<std::optional<StampedOperand>, 3> forms_;  // by OperandForm, Values left out
};

/// The codes of the weights of all scopes, by the weight's identity. One in a process.
class WeightCodeCache {
 public:
  struct Found {
    std::shared_ptr<Operand> operand;
    GradientCount gradients;
  };

  TE_INT8_API static WeightCodeCache& instance();

  Found get(const at::Tensor& weight, OperandForm form) {
    const std::lock_guard lock(mutex_);
    const bool added = codes_.try_emplace(weight.unsafeGetTensorImpl(), weight).second;
    if (added) erase_expired();
    auto& codes = codes_.find(weight.unsafeGetTensorImpl())->second;
    return {codes.get(weight, form), codes.gradients()};
  }
  void forget(const at::Tensor& weight) {
    const std::lock_guard lock(mutex_);
    const auto found = codes_.find(weight.unsafeGetTensorImpl());
    if (found != codes_.end()) found->second.drop();
  }
  /// Drops the codes of weights that are gone, and of those in no scope unless they are frozen.
  template <typename InScope>
  void sweep(const InScope& in_scope) {
    const std::lock_guard lock(mutex_);
    for (auto item = codes_.begin(); item != codes_.end();) {
      auto& [impl, codes] = *item;
      if (!codes.frozen() && !in_scope(impl)) codes.drop();
      const bool done = codes.expired() || (codes.empty() && !codes.awaited());
      item = done ? codes_.erase(item) : std::next(item);
    }
  }
  /// How many weights have codes.
  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(std::ranges::count_if(
        codes_, [](const auto& item) { return !item.second.empty() && !item.second.expired(); }));
  }

 private:
  void erase_expired() {
    std::erase_if(codes_, [](const auto& item) { return item.second.expired(); });
  }

  mutable std::mutex mutex_;
  // The entries' weak pointers keep the keys' addresses from being reused.
  std::unordered_map<const c10::TensorImpl*, WeightCodes> codes_;
};

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
        {StorageState(x),
         x.storage_offset(),
         x.sizes().vec(),
         x.strides().vec(),
         form,
         StampedOperand(operand),
         {consumer}});
    return operand;
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    entries_.clear();
  }

 private:
  static constexpr std::size_t kCapacity = 16;

  struct Entry {
    StorageState state;
    int64_t offset;
    std::vector<int64_t> sizes, strides;
    OperandForm form;
    StampedOperand operand;
    std::vector<const void*> consumers;

    /// The same values in the same rows, perhaps under another shape.
    bool holds(const at::Tensor& x, OperandForm wanted) const {
      if (form != wanted || x.storage_offset() != offset || !state.is_state_of(x)) return false;
      if (x.sizes() == at::IntArrayRef(sizes)) return x.strides() == at::IntArrayRef(strides);
      return form != OperandForm::ColumnCodes && x.size(-1) == sizes.back() &&
             x.numel() == c10::multiply_integers(sizes) && x.is_contiguous() && contiguous();
    }
    bool contiguous() const {
      int64_t expected = 1;
      for (std::size_t i = sizes.size(); i-- > 0; expected *= sizes[i]) {
        if (sizes[i] != 1 && strides[i] != expected) return false;
      }
      return true;
    }
    std::shared_ptr<Operand> shaped_like(const at::Tensor& x) const {
      const auto& made = operand.get();
      if (form == OperandForm::ColumnCodes || made->data().sizes() == x.sizes()) return made;
      const auto scales = form == OperandForm::TensorCodes
                              ? made->scales()
                              : made->scales().view(x.sizes().slice(0, x.dim() - 1));
      return std::make_shared<Operand>(made->data().view(x.sizes()), scales, form);
    }
  };

  static bool shareable(const at::Tensor& x) {
    return !x.is_inference() && !x.is_neg() && x.has_storage() && x.numel() > 0;
  }

  std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace te_int8::inline v0::detail
