// Note [Routing] in routing.cpp, for batch norms: one that a convolution has computed already hands its input on.
#include "norms.h"

#include <algorithm>
#include <memory>
#include <optional>

#include <torch/torch.h>

#include <te_int8/detail/batch_norm.h>
#include <te_int8/detail/scope.h>

#include "frames.h"
#include "routing.h"

namespace te_int8::inline v0::detail {

using at::Tensor;

std::pair<Tensor, Tensor> BatchNorm::fold(const Tensor& scales, const Tensor& bias) const {
  if (auto folded = fold_by_kernel({*mean_, *variance_, *weight_, *bias_, *eps_}, scales, bias)) return *folded;
  auto factor = at::rsqrt(variance_->to(at::kFloat) + *eps_);
  if (weight_->defined()) factor = factor * weight_->to(at::kFloat);
  auto shift = (bias.defined() ? bias.to(at::kFloat) - mean_->to(at::kFloat) : -mean_->to(at::kFloat)) * factor;
  if (bias_->defined()) shift = shift + bias_->to(at::kFloat);
  return {scales * factor, shift};
}

void BatchNormFold::expect(const Tensor& y) {
  const std::lock_guard lock(mutex_);
  if (results_.size() >= most_results_) {
    std::erase_if(results_, [](const auto& known) { return known.second.storage.expired(); });
    most_results_ = std::max<std::size_t>(16, 2 * results_.size());
  }
  auto storage = y.storage().getWeakStorageImpl();
  results_.insert_or_assign(y.storage().unsafeGetStorageImpl(), Result{std::move(storage), false});
  ++count_.results;
}

bool BatchNormFold::take(const Tensor& x, bool training) {
  const std::lock_guard lock(mutex_);
  const auto found = x.has_storage() ? results_.find(x.storage().unsafeGetStorageImpl()) : results_.end();
  if (found == results_.end()) {
    TORCH_CHECK(
        count_.results == count_.taken, "te_int8: expected '", norm_name_, "', which is folded into '", convolution_,
        "', to read the convolution's results, got another tensor while it has not read ", count_.results - count_.taken, " of ",
        count_.results, " results; see Recipe::fold_batch_norm");
    return false;
  }
  TORCH_CHECK(
      !training, "te_int8: expected '", norm_name_, "', which is folded into '", convolution_,
      "', to be in evaluation mode as at the convolution's call, got training mode");
  auto& result = found->second;
  if (!result.taken) ++count_.taken;
  result.taken = true;
  return true;
}

std::string BatchNormFold::remark() const {
  const auto [results, taken] = count();
  const auto folded = "'" + norm_name_ + "' is folded into it";
  return results == taken ? folded : c10::str(folded, ", but has not read ", results - taken, " of ", results, " results");
}

namespace {

using OptionalTensor = std::optional<Tensor>;

/// That of the calling thread's innermost scope which folds this norm.
std::shared_ptr<BatchNormFold> fold_of(const Tensor& running_mean) {
  const auto& frames = thread_frames();
  for (auto frame = frames.rbegin(); frame != frames.rend(); ++frame) {
    if (!frame->membership->open) continue;
    if (auto fold = frame->membership->scope->fold_of(running_mean)) return fold;
  }
  return nullptr;
}

Tensor batch_norm(
    c10::DispatchKeySet keys, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum, double eps,
    bool cudnn_enabled) {
  if (running_mean && running_mean->defined()) {
    if (const auto fold = fold_of(*running_mean); fold && fold->take(x, training)) return x;
  }
  return at::_ops::batch_norm::redispatch(
      keys & kBelowRouting, x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled);
}

}  // namespace

void install_norms(torch::Library& aten) { aten.impl("batch_norm", TORCH_FN(batch_norm)); }

}  // namespace te_int8::inline v0::detail
