// Trains a transformer to pronounce English words, with INT8 in its forward pass. The one line that
// makes it so is in trainer.cpp; this file only puts the parts together.
#include <torch/torch.h>

#include <filesystem>
#include <stdexcept>

#include "../common/program.h"
#include "../common/reproducible.h"
#include "../common/training_run.h"
#include "compare.h"
#include "dictionary.h"
#include "options.h"
#include "report.h"
#include "words.h"

namespace pronounce {

namespace {

Dictionary load_dictionary(const Options& options) {
  if (!std::filesystem::exists(options.data)) {
    throw std::runtime_error(
        "there is no dictionary " + options.data +
        "\nThe default is the CMU Pronouncing Dictionary. Debian and Ubuntu have it in the package "
        "pocketsphinx-en-us:\n"
        "  --data /usr/share/pocketsphinx/model/en-us/cmudict-en-us.dict");
  }
  return read_dictionary(options.data);
}

int train(
    const Options& options, const Dictionary& dictionary, const Split& words,
    torch::Device device) {
  auto model = examples::seeded_model<Pronouncer>(options.model, options.train.seed, device);
  Trainer trainer(model, words, options.train, device);
  const bool finished = examples::run_and_report(
      trainer, training_report(), options,
      run_description(options, dictionary, words, *model, device));
  if (finished) {
    show_words(options.words, words, model, model, device, options.train.recipe);
  }
  return examples::exit_code(finished, "Interrupted.");
}

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  const Dictionary dictionary = load_dictionary(options);
  const Split words = split(dictionary.entries);
  const torch::Device device = examples::begin_training("pronounce", options.device);
  if (options.tf32) {
    TORCH_CHECK(device.is_cuda(), "--tf32: expected a GPU, got ", device);
    at::globalContext().setAllowTF32CuBLAS(true);
  }
  if (!options.compare) {
    return train(options, dictionary, words, device);
  }
  return examples::exit_code(
      compare(options, dictionary, words, device), "Interrupted: there is no comparison.");
}

}  // namespace

}  // namespace pronounce

int main(int argc, char** argv) {
  return examples::run_program("pronounce", [&] { return pronounce::run(argc, argv); });
}
