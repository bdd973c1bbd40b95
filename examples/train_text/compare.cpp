#include "compare.h"

#include <iostream>
#include <optional>
#include <vector>

#include "../common/comparison.h"
#include "../common/reproducible.h"
#include "report.h"

namespace train_text {

bool compare(const Options& options, const TextData& data, torch::Device device) {
  const TrainOptions& settings = options.train;
  const auto train = [&](te_int8::Mode mode, const auto& record) {
    const auto model = examples::seeded_model<Gpt>(options.model, settings.seed, device);
    TrainOptions train_options = settings;
    train_options.mode = mode;
    Trainer trainer(model, data, train_options, device);
    return trainer.run(record) ? std::optional(model) : std::nullopt;
  };
  auto pair = examples::train_both_ways<Gpt>(options, training_report(), train);
  if (!pair) {
    return false;
  }
  const auto batches = data.validation_batches(settings.eval_windows, settings.batch);
  const auto loss = [&](Gpt& model, te_int8::Mode mode) {
    return std::vector{evaluate(model, batches, settings.bf16, mode, settings.recipe)};
  };
  examples::tell_comparison(
      options,
      {{.quantity = "validation loss, nats per byte",
        .difference = "difference, nats per byte",
        .column = "val_loss"}},
      *pair, loss, run_description(options, data, *pair->full, device));
  std::cout << "A picture of the curves: scripts/plot_curves.py " << options.out << "/curves.csv\n";
  return true;
}

}  // namespace train_text
