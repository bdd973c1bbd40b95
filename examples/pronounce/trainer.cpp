#include "trainer.h"

#include <utility>

#include "../common/evaluation_scope.h"
#include "../common/parameters.h"
#include "../common/recipes.h"
#include "error_rates.h"
#include "greedy.h"

namespace pronounce {

Evaluation evaluate(
    Pronouncer& model, const std::vector<EvaluationBatch>& batches, int64_t length_unit,
    te_int8::Mode mode, const te_int8::Recipe& recipe) {
  const examples::EvaluationScope evaluation(*model);
  te_int8::AutocastGuard guard(*model, mode, recipe);
  double loss = 0;
  int64_t count = 0;
  ErrorRates errors;
  for (const auto& [words, references] : batches) {
    const auto phonemes = (words.targets != kNoPhoneme).sum().item<int64_t>();
    loss +=
        model->loss(words, /*label_smoothing=*/0).item<double>() * static_cast<double>(phonemes);
    count += phonemes;
    const auto pronunciations = pronounce(model, words.letters, length_unit);
    for (size_t i = 0; i < references.size(); ++i) {
      errors.add(pronunciations[i], references[i]);
    }
  }
  return {loss / static_cast<double>(count), errors.of_phonemes(), errors.of_words()};
}

Trainer::Trainer(Pronouncer model, const Split& words, TrainOptions options, torch::Device device)
    : model_(std::move(model)),
      options_(std::move(options)),
      batches_(words.training, options_.batch, options_.length_unit, options_.seed, device),
      held_out_(evaluation_batches(
          words.held_out, options_.eval_words, options_.batch, options_.length_unit, device)),
      optimizer_(examples::parameter_groups(*model_, options_.weight_decay, {0.9, 0.95})),
      loop_(options_.schedule, "tokens", device) {}

examples::StepResult Trainer::train_step() {
  const WordBatch batch = batches_.at(loop_.step());
  torch::Tensor loss;
  {
    te_int8::AutocastGuard guard(*model_, options_.mode, options_.recipe);
    loss = model_->loss(batch, options_.label_smoothing);
  }
  loss.backward();
  examples::descend(optimizer_, *model_, options_.clip, loop_.learning_rate());
  return {loss, batch.tokens};
}

bool Trainer::run(const std::function<void(const Metrics&)>& on_metrics) {
  model_->train();
  const auto measure = [&] {
    return evaluate(
        model_, held_out_, options_.length_unit, examples::evaluation_mode(options_.mode),
        options_.recipe);
  };
  return loop_.run(
      options_.steps, options_.eval_every, [&] { return train_step(); }, measure,
      [&](const examples::TrainingMetrics& metrics, const Evaluation& held_out) {
        on_metrics({metrics, held_out});
      });
}

}  // namespace pronounce
