// Somebody who looks at what the calls of a layer compute with; see diagnostics.h.
#pragma once

#include <memory>
#include <string>

#include <te_int8/detail/operand.h>

namespace te_int8::inline v0::detail {

class CallObserver {
 public:
  virtual ~CallObserver() = default;
  /// x [*,K] and weight [N,K], and their operands where the forward has made them.
  virtual void saw_forward(
      const at::Tensor& x, const Operand* x_operand, const at::Tensor& weight, const Operand* weight_operand) = 0;
  /// dy [R,N] and its codes, dx [R,K] and dW [N,K], where the backward has made them.
  virtual void saw_backward(
      const at::Tensor& dy, const Operand* by_row, const Operand* by_column, const at::Tensor& dx, const at::Tensor& dw) = 0;
};

/// For one call of the layer of this name; null while nobody measures.
TE_INT8_API std::shared_ptr<CallObserver> observer_of_call(const std::string& layer);

}  // namespace te_int8::inline v0::detail
