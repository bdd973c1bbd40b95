// Batch norms that a convolution computes in its epilogue: with fixed statistics, a norm is a factor and a shift by channel.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/modules/batchnorm.h>
#include <torch/types.h>

#include <te_int8/config.h>
#include <te_int8/detail/checks.h>
#include <te_int8/detail/tensor_state.h>

namespace te_int8::inline v0::detail {

/// A BatchNorm1d, 2d or 3d.
class BatchNorm {
 public:
  /// Null for any other module.
  static std::shared_ptr<const BatchNorm> of(const std::shared_ptr<torch::nn::Module>& module) {
    using namespace torch::nn;
    if (auto norm = make<BatchNorm1dImpl>(module, 1)) return norm;
    if (auto norm = make<BatchNorm2dImpl>(module, 2)) return norm;
    return make<BatchNorm3dImpl>(module, 3);
  }

  int64_t dimensions() const { return dimensions_; }
  int64_t channels() const { return channels_; }
  /// Whether it normalizes by its running statistics now.
  bool is_fixed() const { return !module_->is_training() && mean_->defined() && variance_->defined(); }
  bool is_of(const at::Tensor& running_mean) const { return mean_->is_same(running_mean); }

  /// What the norm of `scale * sums + bias` makes of scale [O] or [1] and bias [O] or undefined one: those of the whole,
  /// fp32 [O] each.
  std::pair<at::Tensor, at::Tensor> folded(const at::Tensor& scale, const at::Tensor& bias) const {
    auto factor = at::rsqrt(variance_->to(at::kFloat) + eps_);
    if (weight_->defined()) factor = factor * weight_->to(at::kFloat);
    auto shift = bias.defined() ? bias.to(at::kFloat) - mean_->to(at::kFloat) : -mean_->to(at::kFloat);
    shift = shift * factor;
    if (bias_->defined()) shift = shift + bias_->to(at::kFloat);
    return {scale * factor, shift};
  }
  /// What it is computed of.
  std::vector<at::Tensor> inputs() const { return {*mean_, *variance_, *weight_, *bias_}; }

 private:
  template <typename Norm>
  static std::shared_ptr<const BatchNorm> make(const std::shared_ptr<torch::nn::Module>& module, int64_t dimensions) {
    auto* norm = dynamic_cast<Norm*>(module.get());
    if (norm == nullptr) return nullptr;
    auto result = std::make_shared<BatchNorm>();
    result->module_ = module;
    result->dimensions_ = dimensions;
    result->channels_ = norm->options.num_features();
    result->eps_ = norm->options.eps();
    result->mean_ = &norm->running_mean;
    result->variance_ = &norm->running_var;
    result->weight_ = &norm->weight;
    result->bias_ = &norm->bias;
    return result;
  }

  std::shared_ptr<torch::nn::Module> module_;
  int64_t dimensions_ = 0, channels_ = 0;
  double eps_ = 0;
  const at::Tensor *mean_ = nullptr, *variance_ = nullptr, *weight_ = nullptr, *bias_ = nullptr;
};

/// A convolution and the batch norm that reads its results, for the time of a scope of Mode::Inference. The convolution gives what
/// the norm would, and the norm hands that on.
class BatchNormFold : public std::enable_shared_from_this<BatchNormFold> {
 public:
  BatchNormFold(std::string convolution, std::string norm_name, std::shared_ptr<const BatchNorm> norm)
      : convolution_(std::move(convolution)), norm_name_(std::move(norm_name)), norm_(std::move(norm)) {}

  /// Scales and bias of a convolution with the norm in them; none while the norm is in training mode.
  std::optional<std::pair<at::Tensor, at::Tensor>> epilogue(const at::Tensor& scales, const at::Tensor& bias) {
    if (!norm_->is_fixed()) return std::nullopt;
    const std::lock_guard lock(mutex_);
    auto inputs = norm_->inputs();
    inputs.push_back(scales);
    inputs.push_back(bias);
    std::erase_if(inputs, [](const at::Tensor& tensor) { return !tensor.defined(); });
    const bool current = std::ranges::equal(
        inputs, states_, [](const at::Tensor& tensor, const StorageState& state) { return state.is_state_of(tensor); });
    if (!current) {
      folded_ = norm_->folded(scales, bias);
      states_ = {inputs.begin(), inputs.end()};
    }
    return folded_;
  }

  /// `y` is the convolution's result with the norm in it. Its norm is to be the next that reads it.
  void expect(const at::Tensor& y) {
    auto& expected = of_thread();
    std::erase_if(expected, [](const Expected& e) { return e.result.expired(); });
    expected.push_back({c10::weak_intrusive_ptr(y.getIntrusivePtr()), shared_from_this()});
    ++calls_;
  }
  /// Whether `x`, which came to a batch norm of these statistics, is normalized already. Raises where it was for another one.
  TE_INT8_API static bool take(const at::Tensor& x, const at::Tensor& running_mean, bool training);
  /// Forgets what was computed of the norm.
  void refresh() {
    const std::lock_guard lock(mutex_);
    states_.clear();
  }

  const std::string& convolution() const { return convolution_; }
  const std::string& norm_name() const { return norm_name_; }
  int64_t calls() const { return calls_; }
  /// For the report.
  std::string remark() const {
    const auto missed = calls_ - taken_;
    const auto folded = "'" + norm_name_ + "' is folded into it";
    return missed == 0 ? folded : c10::str(folded, ", but has not read ", missed, " of ", calls_.load(), " results");
  }

 private:
  struct Expected {
    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> result;
    std::shared_ptr<BatchNormFold> fold;
  };
  TE_INT8_API static std::vector<Expected>& of_thread();

  std::string convolution_, norm_name_;
  std::shared_ptr<const BatchNorm> norm_;
  std::mutex mutex_;
  std::vector<StorageState> states_;  ///< that folded_ is of
  std::pair<at::Tensor, at::Tensor> folded_;
  std::atomic<int64_t> calls_ = 0, taken_ = 0;
};

}  // namespace te_int8::inline v0::detail
