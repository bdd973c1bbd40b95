// Batch norms that a convolution computes in its epilogue: with fixed statistics, a norm is a factor and a shift by channel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <typeinfo>
#include <unordered_map>
#include <utility>

#include <torch/nn/modules/batchnorm.h>
#include <torch/types.h>

#include <te_int8/config.h>

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
  /// Whether its forward is LibTorch's own, and not a derived class's.
  bool is_plain() const { return is_plain_; }
  /// Whether it normalizes by its running statistics now.
  bool is_fixed() const { return !module_->is_training() && mean_->defined() && variance_->defined(); }
  bool is_module(const torch::nn::Module& module) const { return &module == module_.get(); }
  bool has_mean(const at::Tensor& running_mean) const { return mean_->is_same(running_mean); }

  /// What the norm makes of `scales * sums + bias`, for scales [O] or [1] in fp32 and a bias [O] or an undefined one: the scales
  /// and the bias of the whole, fp32 [O] each. Made anew at each call, as norms write their statistics unseen.
  TE_INT8_API std::pair<at::Tensor, at::Tensor> fold(const at::Tensor& scales, const at::Tensor& bias) const;

 private:
  template <typename Norm>
  static std::shared_ptr<const BatchNorm> make(const std::shared_ptr<torch::nn::Module>& module, int64_t dimensions) {
    auto* norm = dynamic_cast<Norm*>(module.get());
    if (norm == nullptr) return nullptr;
    auto result = std::make_shared<BatchNorm>();
    result->module_ = module;
    result->dimensions_ = dimensions;
    result->channels_ = norm->options.num_features();
    result->is_plain_ = typeid(*norm) == typeid(Norm);
    result->eps_ = &norm->options.eps();
    result->mean_ = &norm->running_mean;
    result->variance_ = &norm->running_var;
    result->weight_ = &norm->weight;
    result->bias_ = &norm->bias;
    return result;
  }

  std::shared_ptr<torch::nn::Module> module_;
  int64_t dimensions_ = 0, channels_ = 0;
  bool is_plain_ = false;
  const double* eps_ = nullptr;
  const at::Tensor *mean_ = nullptr, *variance_ = nullptr, *weight_ = nullptr, *bias_ = nullptr;
};

/// A convolution and the batch norm that reads its results, for the time of a scope of Mode::Inference. The convolution gives what
/// the norm would, and the norm hands that on.
class BatchNormFold {
 public:
  BatchNormFold(std::string convolution, std::string norm_name, std::shared_ptr<const BatchNorm> norm)
      : convolution_(std::move(convolution)), norm_name_(std::move(norm_name)), norm_(std::move(norm)) {}

  const BatchNorm& norm() const { return *norm_; }
  const std::string& convolution() const { return convolution_; }

  /// `y` is the convolution's result with the norm in it.
  TE_INT8_API void expect(const at::Tensor& y);
  /// Whether `x`, which came to the norm, is such a result, or a view of one. Raises where it is not, and results are missing.
  TE_INT8_API bool take(const at::Tensor& x, bool training);

  struct Count {
    int64_t results = 0, taken = 0;
  };
  Count count() const {
    const std::lock_guard lock(mutex_);
    return count_;
  }
  /// For the report of the convolution.
  TE_INT8_API std::string remark() const;

 private:
  struct Result {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;  ///< pinned, so that its address does not come back
    bool taken;
  };

  std::string convolution_, norm_name_;
  std::shared_ptr<const BatchNorm> norm_;
  mutable std::mutex mutex_;
  std::unordered_map<const c10::StorageImpl*, Result> results_;
  std::size_t most_results_ = 16;  ///< before those that are gone are looked for
  Count count_;
};

}  // namespace te_int8::inline v0::detail
