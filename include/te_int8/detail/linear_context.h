// What the node of a quantized linear layer holds (linear_function.h).
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include <torch/custom_class.h>

#include <te_int8/detail/gradient_codes.h>
#include <te_int8/detail/linear_call.h>

namespace te_int8::inline v0::detail {

/// What the backward of a call needs beside the saved tensors.
struct LinearContext : torch::CustomClassHolder {
  LinearConfig config;
  at::ScalarType x_dtype = at::kFloat;
  std::optional<CodesSource> x_source;  ///< how the codes of X are made again, without its inputs, which are saved
  std::optional<at::ScalarType> weight_dtype, bias_dtype;  ///< none: not an input
  std::weak_ptr<Operand> cached_weight;  ///< has the transposed codes for all backwards
  std::mutex mutex;
  std::shared_ptr<Transpose> x_transpose;  ///< for the backwards of all layers that read X; each takes it and lets go
  std::optional<LeftCodes> left_codes;     ///< of the gradient that comes next
  Backend backend = current_backend();
  GradientCount gradients;
  std::weak_ptr<CodesInUse> activations;
  std::shared_ptr<CallObserver> observer;

  // Edges of the graph are counted over the inputs that are there.
  static constexpr std::size_t kInputEdge = 0, kWeightEdge = 1;
  std::size_t bias_edge() const { return weight_dtype ? 2 : 1; }

  std::shared_ptr<Transpose> take_x_transpose() {
    const std::lock_guard lock(mutex);
    return std::exchange(x_transpose, nullptr);
  }

  void leave_codes(const at::Tensor& dy, CodesOfGradient codes) {
    const std::lock_guard lock(mutex);
    left_codes.emplace(dy, std::move(codes));
  }
  /// Those that were left for dy. No others are held any longer.
  std::optional<Operand::Both> take_codes(const at::Tensor& dy, const WantedCodes& wanted) {
    std::optional<LeftCodes> left;
    {
      const std::lock_guard lock(mutex);
      left = std::exchange(left_codes, std::nullopt);
    }
    return left ? std::move(*left).of(dy, wanted) : std::nullopt;
  }

  /// What a backward that wants these gradients makes of dy. Sums are added up as LibTorch does, not here, where the forward is
  /// LibTorch's or they are doubles.
  WantedCodes wanted_codes(bool wants_dx, bool wants_dw, bool wants_db, at::ScalarType dy_dtype) const {
    const bool plain_sums = config.output == Precision::Full || dy_dtype == at::kDouble;
    return {
        wants_dx && config.grad_input == Precision::Int8, wants_dw && config.grad_weight == Precision::Int8,
        wants_db && !plain_sums, backend};
  }

  OperandForm x_form() const {
    return operand_form(config.output, config.grad_weight, config.x_granularity);
  }
  OperandForm weight_form() const {
    return operand_form(config.output, config.grad_input, config.weight_granularity);
  }
};

}  // namespace te_int8::inline v0::detail
