// What the caches of codes (weight_codes.h, activation_codes.h) are made of, beside the state of a tensor that codes were made
// of: codes that other streams may use.
#pragma once

#include <memory>
#include <utility>

#include <torch/types.h>

#include <te_int8/detail/stream_stamp.h>
#include <te_int8/detail/tensor_state.h>
#include <te_int8/linear_function.h>

namespace te_int8::inline v0::detail {

/// An operand that may be used on other streams than the one it was made on.
class StampedOperand {
 public:
  explicit StampedOperand(std::shared_ptr<Operand> operand)
      : operand_(std::move(operand)), made_(operand_->data().device()) {}

  /// The operand, safe to use on the current stream.
  const std::shared_ptr<Operand>& get() const {
    made_.wait({operand_->data(), operand_->scales()});
    return operand_;
  }
  const StreamPoint& made() const { return made_; }

 private:
  std::shared_ptr<Operand> operand_;
  StreamPoint made_;
};

/// Codes that others will use are ordinary tensors, also where InferenceMode makes them: inference
/// tensors cannot be saved for a backward.
struct OutsideInference {
  c10::InferenceMode no_inference_mode{false};
  at::NoGradGuard no_grad;
  PlainTensorOps plain;
};

}  // namespace te_int8::inline v0::detail
