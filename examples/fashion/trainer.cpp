#include "trainer.h"

#include <utility>

#include "../common/bf16_autocast.h"
#include "../common/interrupt.h"
#include "../common/parameters.h"
#include "../common/progress.h"

namespace fashion {

namespace F = torch::nn::functional;

double accuracy(
    Classifier& model, const std::vector<Batch>& batches, bool bf16, te_int8::Mode mode) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  torch::Tensor right = torch::zeros({}, batches.front().labels.options());
  int64_t count = 0;
  {
    te_int8::AutocastGuard guard(model, mode);
    for (const auto& [images, labels] : batches) {
      const examples::Bf16Autocast autocast(images.device(), bf16);
      right += (model.forward(images).argmax(1) == labels).sum();
      count += labels.size(0);
    }
  }
  model.train(was_training);
  return 100.0 * right.item<double>() / static_cast<double>(count);
}

te_int8::Report scope_report(Classifier& model, const Batch& batch) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  te_int8::AutocastGuard guard(model, te_int8::Mode::Inference);
  model.forward(batch.images);
  model.train(was_training);
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
      schedule_(
          {.peak = options.learning_rate,
           .warmup_steps = options.epochs * steps_per_epoch_ / 20,
           .total_steps = options.epochs * steps_per_epoch_,
           .floor = 0.01}),
      optimizer_(examples::parameter_groups(*model_, options.weight_decay, {0.9, 0.999})) {}

torch::Tensor Trainer::train_step(const Batch& batch) {
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
  examples::set_learning_rate(optimizer_, schedule_.at(step_));
  optimizer_.step();
  ++step_;
  return loss.detach();
}

bool Trainer::run(const std::function<void(const Metrics&)>& on_metrics) {
  examples::Progress progress(step_, schedule_.total_steps, options_.batch, "images");
  for (int64_t epoch = 0; epoch < options_.epochs; ++epoch) {
    const AugmentedEpoch batches(train_, options_.seed, epoch, options_.batch);
    torch::Tensor loss_sum = torch::zeros({}, train_.images.device());  // no step waits for it
    Metrics metrics;
    model_->train();
    for (int64_t i = 0; i < batches.size(); ++i) {
      if (examples::interrupted()) {
        progress.clear_line();
        return false;
      }
      progress.step_begins();
      loss_sum += train_step(batches[i]);
      if (i + 1 == batches.size()) {
        // A GPU works behind the CPU's back: reading a value waits for it, so that the time is right.
        metrics.train_loss = loss_sum.item<double>() / static_cast<double>(batches.size());
      }
      progress.step_ended(step_);
    }
    metrics.epoch = epoch + 1;
    metrics.learning_rate = schedule_.at(step_ - 1);
    metrics.images_per_second = progress.items_per_second();
    const bool quantized = options_.mode != te_int8::Mode::Off;
    metrics.test_accuracy = accuracy(
        *model_, test_, options_.bf16, quantized ? te_int8::Mode::Inference : te_int8::Mode::Off);
    metrics.seconds_left = progress.seconds_left(step_);
    progress.restart_speed();
    progress.clear_line();
    on_metrics(metrics);
  }
  return true;
}

}  // namespace fashion
