#include "compare.h"

#include <filesystem>
#include <iostream>
#include <optional>
#include <string>

#include "../common/comparison.h"
#include "../common/csv.h"
#include "report.h"

namespace fashion {

namespace {

const examples::Measure kAccuracy = {
    .quantity = "test accuracy, %",
    .difference = "difference, points",
    .column = "test_accuracy",
    .digits = 2};

}  // namespace

std::shared_ptr<Classifier> seeded_classifier(const Options& options, torch::Device device) {
  torch::manual_seed(options.train.seed);
  auto model = make_classifier(options.model, options.size);
  model->to(device);
  return model;
}

bool compare(
    const Options& options, const Dataset& train_data, const std::vector<Batch>& test,
    torch::Device device) {
  std::filesystem::create_directories(options.out);
  const std::filesystem::path out = options.out;
  examples::CsvWriter curves(out / "curves.csv", metrics_header() + ",run");
  const std::string description =
      run_description(options, *seeded_classifier(options, device), device);

  using Model = std::shared_ptr<Classifier>;
  const auto train = [&](te_int8::Mode mode) -> std::optional<Model> {
    const Model model = seeded_classifier(options, device);
    TrainOptions train_options = options.train;
    train_options.mode = mode;
    const std::string name = mode == te_int8::Mode::Off ? "full precision" : "QAT";
    std::cout << "\nTraining: " << name << '\n' << metrics_heading() << std::endl;
    Trainer trainer(model, train_data, test, train_options);
    const bool finished =
        examples::train_with_curves(trainer, name, curves, metrics_line, metrics_fields);
    return finished ? std::optional(model) : std::nullopt;
  };
  const auto percent = [&](const Model& model, te_int8::Mode mode) {
    return accuracy(*model, test, options.train.bf16, mode);
  };
  const auto result = examples::train_both_ways(train, percent);
  if (!result) {
    return false;
  }
  examples::tell_comparison(*result, kAccuracy, "QAT", out, description, options.command_line);
  return true;
}

}  // namespace fashion
