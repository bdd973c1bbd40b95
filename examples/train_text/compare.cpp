#include "compare.h"

#include <filesystem>
#include <iostream>
#include <optional>
#include <string>

#include "../common/comparison.h"
#include "../common/csv.h"
#include "report.h"

namespace train_text {

namespace {

const examples::Measure kLoss = {
    .quantity = "validation loss, nats per byte",
    .difference = "difference, nats per byte",
    .column = "val_loss"};

std::string recipe_title(const std::string& recipe) {
  return recipe == "qat" ? "QAT" : recipe == "int8" ? "INT8 training" : "SwitchBack";
}

}  // namespace

bool compare(const Options& options, const TextData& data, torch::Device device) {
  std::filesystem::create_directories(options.out);
  const std::filesystem::path out = options.out;
  const std::string title = recipe_title(options.recipe);
  examples::CsvWriter curves(out / "curves.csv", metrics_header() + ",run");

  // Every run starts from the same weights: they depend on the seed alone.
  std::string description;
  const auto train = [&](te_int8::Mode mode) -> std::optional<Gpt> {
    torch::manual_seed(options.train.seed);
    Gpt model(options.model);
    model->to(device);
    description = run_description(options, data, *model, device);
    TrainOptions train_options = options.train;
    train_options.mode = mode;
    Trainer trainer(model, data, train_options, device);
    const std::string name = mode == te_int8::Mode::Off ? "full precision" : title;
    std::cout << '\n' << "Training in " << name << '\n' << metrics_heading() << std::endl;
    const bool finished =
        examples::train_with_curves(trainer, name, curves, metrics_line, metrics_fields);
    return finished ? std::optional(model) : std::nullopt;
  };
  const auto batches = data.validation_batches(options.train.eval_windows, options.train.batch);
  const auto loss = [&](Gpt& model, te_int8::Mode mode) {
    return evaluate(model, batches, options.train.bf16, mode, options.train.recipe);
  };
  const auto result = examples::train_both_ways(train, loss);
  if (!result) {
    return false;
  }
  examples::tell_comparison(*result, kLoss, title, out, description, options.command_line);
  std::cout << "A picture of the curves: scripts/plot_curves.py " << (out / "curves.csv").string()
            << '\n';
  return true;
}

}  // namespace train_text
