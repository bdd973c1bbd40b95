#include "trainer.h"

#include <utility>

#include "../common/bf16_autocast.h"
#include "../common/evaluation_scope.h"
#include "../common/parameters.h"
#include "../common/recipes.h"

namespace train_text {

double evaluate(
    Gpt& model, const std::vector<Batch>& batches, bool bf16, te_int8::Mode mode,
    const te_int8::Recipe& recipe) {
  const examples::EvaluationScope evaluation(*model);
  te_int8::AutocastGuard guard(*model, mode, recipe);
  double sum = 0;
  int64_t count = 0;
  for (const auto& [tokens, targets] : batches) {
    const examples::Bf16Autocast autocast(tokens.device(), bf16);
    sum += model->loss(tokens, targets).item<double>() * static_cast<double>(targets.numel());
    count += targets.numel();
  }
  return sum / static_cast<double>(count);
}

Trainer::Trainer(Gpt model, const TextData& data, TrainOptions options, torch::Device device)
    : model_(std::move(model)),
      data_(data),
      options_(std::move(options)),
      device_(device),
      validation_(data.validation_batches(options_.eval_windows, options_.batch)),
      optimizer_(examples::parameter_groups(*model_, options_.weight_decay, {0.9, 0.95})),
      loop_(options_.schedule, "tokens", device) {
  if (!options_.diagnose.empty()) {
    diagnostics_.emplace(options_.diagnose);
  }
}

examples::StepResult Trainer::train_step() {
  const auto [tokens, targets] = data_.train_batch(options_.seed, step(), options_.batch);
  const auto measurement = diagnostics_ && step() % options_.diagnose_every == 0
                               ? diagnostics_->measure(step())
                               : te_int8::Diagnostics::Measurement();
  torch::Tensor loss;
  {
    const examples::Bf16Autocast autocast(device_, options_.bf16);
    te_int8::AutocastGuard guard(*model_, options_.mode, options_.recipe);
    loss = model_->loss(tokens, targets);
  }
  loss.backward();
  examples::descend(optimizer_, *model_, options_.clip, loop_.learning_rate());
  return {loss, targets.numel()};
}

bool Trainer::run(const std::function<void(const Metrics&)>& on_metrics) {
  model_->train();
  const auto validate = [&] {
    return evaluate(
        model_, validation_, options_.bf16, examples::evaluation_mode(options_.mode),
        options_.recipe);
  };
  return loop_.run(
      options_.steps, options_.eval_every, [&] { return train_step(); }, validate,
      [&](const examples::TrainingMetrics& metrics, double loss) {
        on_metrics({metrics, loss});
      });
}

void Trainer::save(const std::string& path, const examples::Settings& settings) const {
  examples::save_checkpoint(path, *model_, optimizer_, loop_.counters(), settings, device_);
}

void Trainer::load(const std::string& path, const examples::Settings& settings) {
  examples::Counters counters = loop_.counters();
  examples::load_checkpoint(path, *model_, optimizer_, counters, settings, device_);
  loop_.restore(counters);
}

}  // namespace train_text
