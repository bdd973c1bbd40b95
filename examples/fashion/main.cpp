// Trains a classifier of images with INT8 in its forward pass. The one line that makes it so is in
// trainer.cpp; this file only puts the parts together.
#include <torch/torch.h>

#include <filesystem>
#include <iostream>
#include <stdexcept>

#include "../common/program.h"
#include "../common/text.h"
#include "../common/training_run.h"
#include "compare.h"
#include "options.h"
#include "report.h"
#include "trainer.h"

namespace fashion {

namespace {

void check_folder(const std::string& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw std::runtime_error(
        "there is no folder " + folder +
        "\nDebian and Ubuntu have Fashion-MNIST:\n"
        "  apt-get install dataset-fashion-mnist && cp -r /usr/share/datasets/fashion-mnist . && "
        "gunzip fashion-mnist/*.gz\n"
        "Then say --data fashion-mnist.");
  }
}

int train(
    const Options& options, const Dataset& train_data, const std::vector<Batch>& test,
    torch::Device device) {
  const auto model = seeded_classifier(options, device);
  Trainer trainer(model, train_data, test, options.train);
  const bool finished = examples::run_and_report(
      trainer, EpochReport(), options, run_description(options, *model, device));
  if (finished) {
    const auto percent = [&](te_int8::Mode mode) {
      return examples::fixed(accuracy(*model, test, options.train.bf16, mode), 2);
    };
    std::cout << "\nTest accuracy: " << percent(te_int8::Mode::Off) << " % in full precision, "
              << percent(te_int8::Mode::Inference) << " % in INT8\n";
  }
  return examples::exit_code(finished, "Interrupted.");
}

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  check_folder(options.data);
  const torch::Device device = examples::begin_training("fashion", options.device);
  const Dataset train_data = read_dataset(options.data, "train", device, options.train_images);
  const std::vector<Batch> test =
      batches(read_dataset(options.data, "t10k", device), options.train.batch);
  std::cout << "\nWhat a scope does with each layer:\n"
            << scope_report(*seeded_classifier(options, device), test.front()) << std::endl;
  if (!options.compare) {
    return train(options, train_data, test, device);
  }
  return examples::exit_code(
      compare(options, train_data, test, device), "Interrupted: there is no comparison.");
}

}  // namespace

}  // namespace fashion

int main(int argc, char** argv) {
  return examples::run_program("fashion", [&] { return fashion::run(argc, argv); });
}
