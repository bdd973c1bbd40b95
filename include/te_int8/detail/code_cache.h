// Codes that outlive the call that made them: of weights, made once per state of the weight, and of
// activations that feed several layers.
//
// A state is told apart by storage and version; storages are pinned by weak pointers, so that an
// address cannot come back as another storage. What LibTorch does not tell, and what is done about
// it:
//   - torch::optim::SGD and `.data()` write without bumping the version: a weight's codes are also
//     dropped once a gradient was accumulated into it, and are not kept while it has one;
//   - tensors that share a storage need not share a version: codes of such a weight are not kept;
//   - raw pointers write unseen: a layer that meets the same activation again quantizes it again,
//     so only different layers share; for weights there is te_int8::refresh;
//   - inference tensors have no version: their activations are never shared.
//
// During the capture of a CUDA graph a weight that is trained is quantized inside the graph, so that a replay sees
// its steps. Any other keeps the codes that it has, which then live as long as the weight: see docs/design.md.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <te_int8/detail/stream_stamp.h>
#include <te_int8/linear_function.h>

namespace te_int8::inline v0::detail {

/// What a tensor is a view of, or itself. Autograd knows, but for inference tensors.
inline const at::TensorBase& base_of(const at::Tensor& tensor) {
  const auto* view = torch::autograd::impl::get_view_autograd_meta(tensor);
  return view != nullptr && view->has_bw_view() ? view->get_backward_view().base_ : tensor;
}

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

/// The same with the shape in which the storage is read.
class LaidOutState {
 public:
  explicit LaidOutState(const at::Tensor& tensor)
      : storage_(tensor), sizes_(tensor.sizes().vec()), strides_(tensor.strides().vec()) {}

  bool is_state_of(const at::Tensor& tensor) const {
    return storage_.is_state_of(tensor) && tensor.sizes() == at::IntArrayRef(sizes_) &&
           tensor.strides() == at::IntArrayRef(strides_);
  }
  /// The same rows in the same order, perhaps under another shape.
  bool has_rows_of(const at::Tensor& tensor) const {
    return storage_.is_state_of(tensor) && tensor.size(-1) == sizes_.back() &&
           tensor.numel() == c10::multiply_integers(sizes_) && tensor.is_contiguous() &&
           contiguous();
  }
  bool expired() const { return storage_.expired(); }

 private:
  bool contiguous() const {
    int64_t expected = 1;
    for (std::size_t i = sizes_.size(); i-- > 0; expected *= sizes_[i]) {
      if (sizes_[i] != 1 && strides_[i] != expected) return false;
    }
    return true;
  }

  StorageState storage_;
  std::vector<int64_t> sizes_, strides_;
};

/// An operand that may be used on other streams than the one it was made on.
class StampedOperand {
 public:
  explicit StampedOperand(std::shared_ptr<Operand> operand)
      : operand_(std::move(operand)), made_(operand_->data().device()) {}

  /// The operand, safe to use on the current stream.
  const std::shared_ptr<Operand>& get() const {
    made_.wait({operand_->data(), operand_->scales()});
    return operand_;
  }
  const StreamStamp& made() const { return made_; }

 private:
  std::shared_ptr<Operand> operand_;
  StreamStamp made_;
};

/// Codes that others will use are ordinary tensors, also where InferenceMode makes them: inference
/// tensors cannot be saved for a backward.
struct OutsideInference {
  c10::InferenceMode no_inference_mode{false};
  at::NoGradGuard no_grad;
  PlainTensorOps plain;
};

/// Drops the codes of a weight that dies.
TE_INT8_API void forget_codes(const c10::TensorImpl* weight) noexcept;

/// Notices each gradient that a leaf gets, of whichever forward and in whichever thread: LibTorch has a
/// place in a leaf for one hook that runs after a gradient was accumulated, and dies with the leaf.
class GradientWatch {
 public:
  /// Whether `weight` may have got a gradient since the last call. Starts to watch a leaf that is not yet.
  bool take_news(const at::Tensor& weight) {
    if (weight.is_leaf() && !weight.is_inference()) {
      namespace impl = torch::autograd::impl;
      const auto* meta = impl::get_autograd_meta(weight);
      const auto* hook = meta == nullptr ? nullptr : meta->post_acc_grad_hooks_.get();
      if (hook == nullptr) {
        impl::set_post_acc_grad_hooks(
            weight, std::make_unique<Counter>(count_, weight.unsafeGetTensorImpl()));
        return true;
      }
      const auto* ours = dynamic_cast<const Counter*>(hook);
      if (ours == nullptr) return true;  // somebody else's: what ours would have told has to be assumed
      if (ours->count != count_) {       // of a cache entry before this one
        count_ = ours->count;
        seen_ = *count_;
        return true;
      }
    }
    const auto count = count_->load();
    const bool arrived = count != seen_;
    seen_ = count;
    return arrived;
  }

  const GradientCount& count() const { return count_; }

 private:
  struct TE_INT8_API Counter final : torch::autograd::PostAccumulateGradHook {
    Counter(GradientCount counted, const c10::TensorImpl* counted_leaf)
        : count(std::move(counted)), leaf(counted_leaf) {}
    ~Counter() override { forget_codes(leaf); }
    void operator()(const torch::autograd::Variable&) override { ++*count; }
    GradientCount count;
    const c10::TensorImpl* leaf;
  };

  GradientCount count_ = std::make_shared<std::atomic<uint64_t>>(0);
  uint64_t seen_ = 0;
};

/// The codes of one weight.
class WeightCodes {
 public:
  explicit WeightCodes(const at::Tensor& weight)
      : weight_(weight.getIntrusivePtr()), state_(weight) {}

  struct Found {
    std::shared_ptr<Operand> operand;
    GradientCount gradients;
  };

  /// `holders` tensors of the call hold the weight's storage, the weight among them; 0 where one of them
  /// counts its versions by itself. `trained` where the call is recorded for a gradient of the weight.
  Found get(const at::Tensor& weight, OperandForm form, std::size_t holders, bool trained) {
    const std::lock_guard lock(mutex_);
    const bool gradients = watch_.take_news(weight);
    if (gradients || !state_.is_state_of(weight) || required_grad_ != weight.requires_grad() ||
        had_gradient_ != has_gradient(weight) || may_change_unseen(weight)) {
      forms_.fill(std::nullopt);
      state_ = LaidOutState(weight);
      required_grad_ = weight.requires_grad();
      had_gradient_ = has_gradient(weight);
    }
    auto& codes = forms_.at(static_cast<std::size_t>(form));
    if (trained && capture_of(weight.device()) != 0) stepped_by_graphs_ = true;
    if (codes && (!codes->made().usable_now() || (trained && codes->made().before_capture()))) codes.reset();
    if (codes && codes->made().before_capture() && (in_graphs_.empty() || in_graphs_.back() != codes->get())) {
      in_graphs_.push_back(codes->get());
    }
    if (!codes) {
      const OutsideInference outside;
      auto operand = Operand::make(weight, form);
      operand->expect_reuse();
      codes.emplace(std::move(operand));
      shared_ = weight.is_view() || weight.storage().use_count() > holders;
    }
    return {codes->get(), watch_.count()};
  }

  void drop() {
    const std::lock_guard lock(mutex_);
    forms_.fill(std::nullopt);
  }
  bool empty() const {
    const std::lock_guard lock(mutex_);
    return in_graphs_.empty() &&
           std::ranges::none_of(forms_, [](const auto& form) { return form.has_value(); });
  }

  /// Whether the weight itself is gone.
  bool expired() const { return weight_.expired(); }
  /// Whether the codes may outlive the scope: nobody trains the weight, and nobody else holds its storage.
  bool frozen() const {
    const auto weight = weight_.lock();
    return weight && !weight->requires_grad() &&
           (!weight->has_storage() || weight->unsafe_storage().use_count() == 1);
  }

 private:
  /// Also of a weight that is frozen for the moment: an optimizer steps whatever has one.
  static bool has_gradient(const at::Tensor& weight) {
    return weight.is_leaf() && weight.grad().defined();
  }
  /// A gradient that is there may become a step at any time, an inference tensor has no version, tensors that share a
  /// storage need not share theirs, and replays of a graph count nothing.
  bool may_change_unseen(const at::Tensor& weight) const {
    return weight.is_inference() || has_gradient(weight) || shared_ || stepped_by_graphs_;
  }

  const c10::weak_intrusive_ptr<c10::TensorImpl> weight_;
  mutable std::mutex mutex_;
  LaidOutState state_;
  GradientWatch watch_;
  // When the codes were made:
  bool required_grad_ = false, had_gradient_ = false;
  bool stepped_by_graphs_ = false;  ///< a graph that trains the weight may be replayed
  bool shared_ = false;  ///< others held the storage and may write to it: good for one call
  std::array<std::optional<StampedOperand>, 3> forms_;  // by OperandForm, Values left out
  std::vector<std::shared_ptr<Operand>> in_graphs_;     ///< made before the capture of a graph that reads them
};

/// The codes of the weights of all scopes, by the weight's identity. One in a process.
class WeightCodeCache {
 public:
  TE_INT8_API static WeightCodeCache& instance();

  WeightCodes::Found get(const at::Tensor& weight, OperandForm form, std::size_t holders, bool trained) {
    // Unlocked: other weights need not wait for this one.
    return entry_of(weight)->get(weight, form, holders, trained);
  }
  void forget(const c10::TensorImpl* weight) {
    const std::lock_guard lock(mutex_);
    const auto found = codes_.find(weight);
    if (found != codes_.end()) found->second->drop();
  }
  /// Drops the codes of a weight that a scope no longer has, unless it is frozen.
  void leave(const c10::TensorImpl* weight) {
    const std::lock_guard lock(mutex_);
    const auto found = codes_.find(weight);
    if (found != codes_.end() && !found->second->frozen()) found->second->drop();
  }
  /// Drops the codes of weights that are gone, and of those in no scope unless they are frozen.
  template <typename InScope>
  void sweep(const InScope& in_scope) {
    const std::lock_guard lock(mutex_);
    std::erase_if(codes_, [&](const auto& item) {
      const auto& [impl, codes] = item;
      if (codes->expired()) return true;
      if (in_scope(impl)) return false;
      if (!codes->frozen()) codes->drop();
      return codes->empty() && codes.use_count() == 1;  // else somebody is about to fill it
    });
  }
  /// How many weights have codes.
  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(
        std::ranges::count_if(codes_, [](const auto& item) { return !item.second->empty(); }));
  }

 private:
  std::shared_ptr<WeightCodes> entry_of(const at::Tensor& weight) {
    const std::lock_guard lock(mutex_);
    auto& entry = codes_[weight.unsafeGetTensorImpl()];
    if (entry) return entry;
    const auto added = entry = std::make_shared<WeightCodes>(weight);
    std::erase_if(codes_, [](const auto& item) { return item.second->expired(); });
    return added;
  }

  // Recursive, as a weight may die of a look at it here, and forget its codes.
  mutable std::recursive_mutex mutex_;
  // The entries' weak pointers keep the keys' addresses from being reused.
  std::unordered_map<const c10::TensorImpl*, std::shared_ptr<WeightCodes>> codes_;
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
        {LaidOutState(x), WeakTensor(base_of(x).getIntrusivePtr()), form, StampedOperand(operand), {consumer}});
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
    StampedOperand operand;
    std::vector<const void*> consumers;

    bool holds(const at::Tensor& x, OperandForm wanted) const {
      return form == wanted && base._unsafe_get_target() == base_of(x).unsafeGetTensorImpl() &&
             operand.made().usable_now() && !operand.made().before_capture() &&
             (state.is_state_of(x) || (form != OperandForm::ColumnCodes && state.has_rows_of(x)));
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
