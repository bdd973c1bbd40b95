// Codes of weights, which outlive the call that made them: made once per state of the weight.
//
// What LibTorch does not tell of a weight, and what is done about it:
//   - torch::optim::SGD and others write through `.data()`, which bumps no version. A thread of a scope sees their usual
//     operations (src/routing.cpp). What another thread does cannot be seen: until a weight has once changed visibly after
//     a gradient, its codes are dropped at each gradient and not kept while it has one. From then on its steps are taken
//     for visible, so that the micro-batches of a step share its codes;
//   - tensors that share a storage need not share a version: codes of such a weight are not kept;
//   - raw pointers write unseen: for them there is te_int8::refresh;
//   - replays of a CUDA graph count nothing: codes of a weight that one may train are not kept.
//
// During the capture of a CUDA graph a weight that is trained is quantized inside the graph, so that a replay sees
// its steps. Any other keeps the codes that it has, which then live as long as the weight: see docs/design.md.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/csrc/autograd/function_hook.h>

#include <te_int8/detail/cached_codes.h>

namespace te_int8::inline v0::detail {

/// Drops the codes of a weight that dies.
TE_INT8_API void forget_codes(const c10::TensorImpl* weight) noexcept;

/// Notices each gradient that a leaf gets, of whichever forward and in whichever thread: LibTorch has a
/// place in a leaf for one hook that runs after a gradient was accumulated, and dies with the leaf.
class GradientWatch {
 public:
  enum class News { None, Unknown, Gradient };

  /// Whether `weight` has got a gradient since the last call; unknown where nobody could tell until now. Starts to watch a
  /// leaf that is not yet.
  News take_news(const at::Tensor& weight) {
    if (weight.is_leaf() && !weight.is_inference()) {
      namespace impl = torch::autograd::impl;
      const auto* meta = impl::get_autograd_meta(weight);
      const auto* hook = meta == nullptr ? nullptr : meta->post_acc_grad_hooks_.get();
      if (hook == nullptr) {
        impl::set_post_acc_grad_hooks(
            weight, std::make_unique<Counter>(count_, weight.unsafeGetTensorImpl()));
        return News::Unknown;
      }
      const auto* ours = dynamic_cast<const Counter*>(hook);
      if (ours == nullptr) return News::Unknown;  // somebody else's: what ours would have told has to be assumed
      if (ours->count != count_) {       // of a cache entry before this one
        count_ = ours->count;
        seen_ = *count_;
        return News::Unknown;
      }
    }
    const auto count = count_->load();
    const bool arrived = count != seen_;
    seen_ = count;
    return arrived ? News::Gradient : News::None;
  }

  const GradientCount& count() const { return count_; }

  static bool is_watch(const torch::autograd::PostAccumulateGradHook& hook) {
    return dynamic_cast<const Counter*>(&hook) != nullptr;
  }

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
    const bool changed = written_.exchange(false) || !state_.is_state_of(weight);
    const auto news = watch_.take_news(weight);
    const bool now = has_gradient(weight);
    after_gradient_ |= now || news == GradientWatch::News::Gradient;
    if (changed) steps_show_ |= std::exchange(after_gradient_, false);
    // A gradient that is gone again was perhaps a step.
    const bool perhaps_stepped = now ? !steps_show_ : news != GradientWatch::News::None || had_gradient_;
    if (changed || required_grad_ != weight.requires_grad() || may_change_unseen(weight) || perhaps_stepped) {
      forms_.fill(std::nullopt);
      state_ = LaidOutState(weight);
      required_grad_ = weight.requires_grad();
      had_gradient_ = now;
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
    after_gradient_ = steps_show_ = false;
  }
  /// Somebody wrote to the weight, or to a tensor that shares its storage, perhaps in each replay of a graph.
  void note_write(bool in_graph) {
    written_ = true;
    if (in_graph) stepped_by_graphs_ = true;
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
  /// An inference tensor has no version, tensors that share a storage need not share theirs, and replays of a graph count
  /// nothing.
  bool may_change_unseen(const at::Tensor& weight) const {
    return weight.is_inference() || shared_ || stepped_by_graphs_;
  }

  const c10::weak_intrusive_ptr<c10::TensorImpl> weight_;
  mutable std::mutex mutex_;
  LaidOutState state_;
  GradientWatch watch_;
  std::atomic<bool> written_ = false;
  bool after_gradient_ = false;  ///< there was a gradient since the last change
  bool steps_show_ = false;      ///< the weight has changed visibly after a gradient
  // When the codes were made:
  bool required_grad_ = false, had_gradient_ = false;
  std::atomic<bool> stepped_by_graphs_ = false;  ///< a graph that trains the weight may be replayed
  bool shared_ = false;  ///< others held the storage and may write to it: good for one call
  std::array<std::optional<StampedOperand>, kCodeForms> forms_;  // by OperandForm
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
  /// The weight, or a tensor that shares its storage, was written to.
  void note_write(const c10::TensorImpl* weight, bool in_graph) {
    const std::lock_guard lock(mutex_);
    const auto found = codes_.find(weight);
    if (found != codes_.end()) found->second->note_write(in_graph);
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

}  // namespace te_int8::inline v0::detail
