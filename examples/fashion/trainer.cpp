#include "trainer.h"

#include <utility>

#include "../common/bf16_autocast.h"
#include "../common/evaluation_scope.h"
#include "../common/parameters.h"
#include "../common/recipes.h"

namespace fashion {

namespace F = torch::nn::functional;

double accuracy(
    Classifier& model, const std::vector<Batch>& batches, bool bf16, te_int8::Mode mode) {
  const examples::EvaluationScope evaluation(model);
  te_int8::AutocastGuard guard(model, mode);
  torch::Tensor right = torch::zeros({}, batches.front().labels.options());
  int64_t count = 0;
  for (const auto& [images, labels] : batches) {
    const examples::Bf16Autocast autocast(images.device(), bf16);
    right += (model.forward(images).argmax(1) == labels).sum();
    count += labels.size(0);
  }
  return 100.0 * right.item<double>() / static_cast<double>(count);
}

te_int8::Report scope_report(Classifier& model, const Batch& batch) {
  const examples::EvaluationScope evaluation(model);
  te_int8::AutocastGuard guard(model, te_int8::Mode::Inference);
  model.forward(batch.images);
  return guard.report();
}

Trainer::Trainer(
    std::shared_ptr<Classifier> model, const Dataset& train, const std::vector<Batch>& test,
    const TrainOptions& options)
    : model_(std::move(model)),
      train_(train),
      test_(test),
      options_(options),
      steps_per_epoch_(train.size() / options.batch),
      loop_(
          {.peak = options.learning_rate,
           .warmup_steps = options.epochs * steps_per_epoch_ / 20,
           .total_steps = options.epochs * steps_per_epoch_,
           .floor = 0.01},
          "images", train.images.device()),
      optimizer_(examples::parameter_groups(*model_, options.weight_decay, {0.9, 0.999})) {}

examples::StepResult Trainer::train_step() {
  const int64_t place = loop_.step() % steps_per_epoch_;
  if (place == 0) {
    epoch_.emplace(train_, options_.seed, loop_.step() / steps_per_epoch_, options_.batch);
  }
  const Batch batch = (*epoch_)[place];
  torch::Tensor logits;
  {
    const examples::Bf16Autocast autocast(batch.images.device(), options_.bf16);
    te_int8::AutocastGuard guard(*model_, options_.mode);
    logits = model_->forward(batch.images);
  }
  const torch::Tensor loss = F::cross_entropy(
      logits.to(torch::kFloat), batch.labels,
      F::CrossEntropyFuncOptions().label_smoothing(options_.label_smoothing));
  optimizer_.zero_grad();
  loss.backward();
  examples::set_learning_rate(optimizer_, loop_.learning_rate());
  optimizer_.step();
  return {loss, options_.batch};
}

bool Trainer::run(const std::function<void(const Metrics&)>& on_metrics) {
  model_->train();
  const auto test_accuracy = [&] {
    return accuracy(*model_, test_, options_.bf16, examples::evaluation_mode(options_.mode));
  };
  return loop_.run(
      options_.epochs * steps_per_epoch_, /*eval_every=*/steps_per_epoch_,
      [&] { return train_step(); }, test_accuracy,
      [&](const examples::TrainingMetrics& metrics, double percent) {
        on_metrics({metrics, metrics.step / steps_per_epoch_, percent});
      });
}

}  // namespace fashion
