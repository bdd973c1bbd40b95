#include <te_int8/detail/gradient_codes.h>

#include <torch/csrc/autograd/graph_task.h>

namespace te_int8::inline v0::detail {

LastGradient& LastGradient::of_thread() {
  static thread_local LastGradient last;
  return last;
}

bool will_run(const torch::autograd::Node& node) {
  const auto* wanted = torch::autograd::get_current_graph_task_exec_info();
  if (wanted == nullptr || wanted->empty()) return true;
  const auto found = wanted->find(const_cast<torch::autograd::Node*>(&node));
  return found != wanted->end() && found->second.needed_;
}

}  // namespace te_int8::inline v0::detail
