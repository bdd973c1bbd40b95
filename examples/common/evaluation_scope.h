// Eval mode without gradients, as a scope.
#pragma once

#include <torch/torch.h>

namespace examples {

class EvaluationScope {
 public:
  explicit EvaluationScope(torch::nn::Module& model)
      : model_(model), was_training_(model.is_training()) {
    model_.eval();
  }
  ~EvaluationScope() { model_.train(was_training_); }

  // As in Note [Scopes are not copied] (bf16_autocast.h).
  EvaluationScope(const EvaluationScope&) = delete;
  EvaluationScope& operator=(const EvaluationScope&) = delete;

 private:
  torch::NoGradGuard no_grad_;
  torch::nn::Module& model_;
  bool was_training_;
};

}  // namespace examples
