#include "compare.h"

#include <iostream>
#include <optional>
#include <vector>

#include "../common/comparison.h"
#include "../common/reproducible.h"
#include "report.h"
#include "words.h"

namespace pronounce {

namespace {

const std::vector<examples::Measure> kMeasures = {
    {.quantity = "loss, nats per phoneme",
     .difference = "difference, nats per phoneme",
     .column = "val_loss"},
    {.quantity = "phoneme error rate, %",
     .difference = "difference, points",
     .column = "per",
     .digits = 2},
    {.quantity = "word error rate, %",
     .difference = "difference, points",
     .column = "wer",
     .digits = 2}};

}  // namespace

bool compare(
    const Options& options, const Dictionary& dictionary, const Split& words,
    torch::Device device) {
  const TrainOptions& settings = options.train;
  const auto train = [&](te_int8::Mode mode, const auto& record) {
    const auto model = examples::seeded_model<Pronouncer>(options.model, settings.seed, device);
    TrainOptions train_options = settings;
    train_options.mode = mode;
    Trainer trainer(model, words, train_options, device);
    return trainer.run(record) ? std::optional(model) : std::nullopt;
  };
  auto pair = examples::train_both_ways<Pronouncer>(options, training_report(), train);
  if (!pair) {
    return false;
  }
  const auto batches = evaluation_batches(
      words.held_out, settings.eval_words, settings.batch, settings.length_unit, device);
  const auto errors = [&](Pronouncer& model, te_int8::Mode mode) {
    const auto [loss, phonemes, whole_words] =
        evaluate(model, batches, settings.length_unit, mode, settings.recipe);
    return std::vector{loss, 100 * phonemes, 100 * whole_words};
  };
  examples::tell_comparison(
      options, kMeasures, *pair, errors,
      run_description(options, dictionary, words, *pair->full, device));
  std::cout << "A picture of the curves: scripts/plot_curves.py " << options.out << "/curves.csv\n";
  show_words(options.words, words, pair->full, pair->recipe, device, settings.recipe);
  return true;
}

}  // namespace pronounce
