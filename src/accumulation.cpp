#include <te_int8/detail/accumulation.h>

#include <ATen/CachedTensorUtils.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>

#include <te_int8/detail/gradient_codes.h>
#include <te_int8/detail/weight_codes.h>

namespace te_int8::inline v0::detail {
namespace {

bool has_hooks(torch::autograd::Node& maker, torch::autograd::AccumulateGrad& accumulator) {
  const auto& after = accumulator.tensor_post_acc_grad_hooks();
  return !maker.post_hooks().empty() || has_hooks_before(accumulator) || !accumulator.post_hooks().empty() ||
         (after != nullptr && !GradientWatch::is_watch(*after));
}

/// Of a CPU's gradient several threads may run backwards at once.
bool may_be_added_to(const at::Tensor& gradient, const at::Tensor& leaf) {
  return gradient.defined() && gradient.is_cuda() && !gradient.requires_grad() && !gradient.is_inference() &&
         gradient.layout() == at::kStrided && !at::isTensorSubclassLike(gradient) && gradient.is_contiguous() &&
         gradient.sizes() == leaf.sizes() && !at::caching::is_cached_tensor(gradient);
}

}  // namespace

bool add_to_gradient(std::size_t edge, const std::function<void(at::Tensor& gradient)>& add) {
  auto& maker = *torch::autograd::get_current_node();
  auto* accumulator = dynamic_cast<torch::autograd::AccumulateGrad*>(maker.next_edge(edge).function.get());
  if (accumulator == nullptr || torch::autograd::AnomalyMode::is_enabled() || !will_run(*accumulator) ||
      has_hooks(maker, *accumulator)) {
    return false;
  }
  auto gradient = accumulator->variable.grad();
  if (!may_be_added_to(gradient, accumulator->variable)) return false;
  const auto here = c10::impl::VirtualGuardImpl(gradient.device().type()).getStream(gradient.device());
  if (accumulator->stream() != here) return false;
  add(gradient);
  torch::autograd::impl::bump_version(gradient);
  if (const auto& watch = accumulator->tensor_post_acc_grad_hooks()) (*watch)(accumulator->variable);
  return true;
}

}  // namespace te_int8::inline v0::detail
