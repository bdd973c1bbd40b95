// Note [Routing] in routing.cpp, for batch norms: one that a convolution has computed already hands its input on.
#include "routing.h"

#include <algorithm>
#include <optional>
#include <vector>

#include <torch/torch.h>

#include <te_int8/detail/batch_norm.h>

namespace te_int8::inline v0::detail {

std::vector<BatchNormFold::Expected>& BatchNormFold::of_thread() {
  static thread_local std::vector<Expected> expected;
  return expected;
}

bool BatchNormFold::take(const at::Tensor& x, const at::Tensor& running_mean, bool training) {
  auto& expected = of_thread();
  const auto found = std::ranges::find_if(
      expected, [&](const Expected& e) { return e.result._unsafe_get_target() == x.unsafeGetTensorImpl(); });
  if (found == expected.end()) return false;
  const auto fold = found->fold;
  TORCH_CHECK(
      !training && fold->norm_->is_of(running_mean), "te_int8: expected the results of '", fold->convolution_, "' to go to '",
      fold->norm_name_, "', which is folded into it, in evaluation mode, got ",
      training ? "training mode" : "another batch norm", "; see Recipe::fold_batch_norm");
  expected.erase(found);
  ++fold->taken_;
  return true;
}

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor batch_norm(
    c10::DispatchKeySet keys, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum, double eps,
    bool cudnn_enabled) {
  if (BatchNormFold::take(x, running_mean.value_or(Tensor()), training)) return x;
  return at::_ops::batch_norm::redispatch(
      keys & kBelowRouting, x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled);
}

}  // namespace

void install_norms(torch::Library& aten) { aten.impl("batch_norm", TORCH_FN(batch_norm)); }

}  // namespace te_int8::inline v0::detail
