#include <te_int8/detail/accumulation.h>

#include <ATen/CachedTensorUtils.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>

#include <te_int8/detail/weight_codes.h>

namespace te_int8::inline v0::detail {
namespace {

/// Whether the backward that runs is to leave its gradients in leaves: not to return this one.
bool accumulates(const torch::autograd::Node* accumulator) {
  const auto* wanted = torch::autograd::get_current_graph_task_exec_info();
  if (wanted == nullptr || wanted->empty()) return true;
  const auto found = wanted->find(const_cast<torch::autograd::Node*>(accumulator));
  return found != wanted->end() && found->second.should_execute() && found->second.captures_ == nullptr;
}

bool has_hooks(torch::autograd::AccumulateGrad& accumulator) {
  const auto& after = accumulator.tensor_post_acc_grad_hooks();
  return !accumulator.pre_hooks().empty() || !accumulator.tensor_pre_hooks().empty() || !accumulator.post_hooks().empty() ||
         (after != nullptr && !GradientWatch::is_watch(*after));
}

}  // namespace

at::Tensor gradient_to_add_to(const torch::autograd::Edge& edge) {
  auto* accumulator = dynamic_cast<torch::autograd::AccumulateGrad*>(edge.function.get());
  if (accumulator == nullptr || !accumulates(accumulator) || has_hooks(*accumulator)) return {};
  const auto gradient = accumulator->variable.grad();
  // Of a CPU's gradient several threads may run backwards at once.
  if (!gradient.defined() || !gradient.is_cuda() || gradient.requires_grad() || gradient.is_inference() ||
      gradient.layout() != at::kStrided || at::isTensorSubclassLike(gradient) || !gradient.is_contiguous() ||
      gradient.sizes() != accumulator->variable.sizes() || at::caching::is_cached_tensor(gradient)) {
    return {};
  }
  const auto here = c10::impl::VirtualGuardImpl(gradient.device().type()).getStream(gradient.device());
  return accumulator->stream() == here ? gradient : at::Tensor();
}

}  // namespace te_int8::inline v0::detail
