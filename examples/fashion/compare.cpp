#include "compare.h"

#include <optional>
#include <vector>

#include "../common/comparison.h"
#include "report.h"

namespace fashion {

std::shared_ptr<Classifier> seeded_classifier(const Options& options, torch::Device device) {
  torch::manual_seed(options.train.seed);
  auto model = make_classifier(options.model, options.size);
  model->to(device);
  return model;
}

bool compare(
    const Options& options, const Dataset& train_data, const std::vector<Batch>& test,
    torch::Device device) {
  using Model = std::shared_ptr<Classifier>;
  const auto train = [&](te_int8::Mode mode, const auto& record) {
    const Model model = seeded_classifier(options, device);
    TrainOptions train_options = options.train;
    train_options.mode = mode;
    Trainer trainer(model, train_data, test, train_options);
    return trainer.run(record) ? std::optional(model) : std::nullopt;
  };
  auto pair = examples::train_both_ways<Model>(options, EpochReport(), train);
  if (!pair) {
    return false;
  }
  const auto percent = [&](const Model& model, te_int8::Mode mode) {
    return std::vector{accuracy(*model, test, options.train.bf16, mode)};
  };
  examples::tell_comparison(
      options,
      {{.quantity = "test accuracy, %",
        .difference = "difference, points",
        .column = "test_accuracy",
        .digits = 2}},
      *pair, percent, run_description(options, *pair->full, device));
  return true;
}

}  // namespace fashion
