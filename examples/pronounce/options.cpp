#include "options.h"

#include <optional>

#include "../common/training_command_line.h"

#ifndef TE_INT8_DEFAULT_DICTIONARY
#define TE_INT8_DEFAULT_DICTIONARY "cmudict.dict"
#endif

namespace pronounce {

using examples::positive;

namespace {

// What a --size stands for. Each value can be overridden by its own option.
struct Preset {
  PronouncerConfig model;
  examples::TrainingPreset training;
  int64_t length_unit;
  int64_t eval_words;
};

Preset preset(const std::string& size) {
  if (size == "large") {  // 5.6 million parameters, 26 times the dictionary: for a GPU
    return {
        {.layers = 3, .width = 256, .heads = 4, .dropout = 0.1},
        {.batch = 1024, .steps = 3000, .learning_rate = 1e-3},
        8,
        100000};
  }
  // 1 million parameters, 1.3 times the dictionary: some minutes on two CPU cores
  return {
      {.layers = 2, .width = 128, .heads = 4, .dropout = 0},
      {.batch = 64, .steps = 2500, .learning_rate = 2e-3},
      2,
      1000};
}

// What the command line may leave open.
struct Given : examples::GivenTraining {
  std::string size = "small";
  std::optional<int64_t> layers, width, heads, eval_words;
  std::optional<double> dropout;
};

// Fills it in from the preset, and checks what no single option can.
void finish(Options& options, const Given& given) {
  const Preset start = preset(given.size);
  PronouncerConfig& model = options.model;
  model.layers = given.layers.value_or(start.model.layers);
  model.width = given.width.value_or(start.model.width);
  model.heads = given.heads.value_or(start.model.heads);
  model.dropout = given.dropout.value_or(start.model.dropout);
  examples::fill_in(options.train, given, start.training, options);
  options.train.length_unit = start.length_unit;
  options.train.eval_words = given.eval_words.value_or(start.eval_words);
  examples::check(options, options.train);
  examples::require(
      model.width % model.heads == 0, "--width " + std::to_string(model.width) +
                                          " is not a multiple of --heads " +
                                          std::to_string(model.heads));
}

CLI::Validator spelling() {
  const auto check = [](const std::string& word) {
    return is_spelling(word) ? ""
                             : "expected 1 to " + std::to_string(kLongest) +
                                   " letters a to z and apostrophes, got " + word;
  };
  return CLI::Validator(check, "WORD");
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Given given;
  Options options;
  TrainOptions& train = options.train;
  train.seed = 1;
  train.weight_decay = 0.01;
  options.data = TE_INT8_DEFAULT_DICTIONARY;
  options.out = "pronounce_compare";

  CLI::App app(
      "Trains a transformer to pronounce English words from their spelling, with INT8 in its\n"
      "forward pass, and counts its errors on words that it was not trained on.\n"
      "With --compare: trains the same model in full precision too, and prints how they differ.");
  app.get_formatter()->column_width(34);
  app.add_option("--data", options.data, "The dictionary, in the format of CMU's")
      ->capture_default_str();
  examples::add_device_option(app, options.device);
  app.add_option("--seed", train.seed, "Of the weights and batches")->capture_default_str();
  app.add_option("--word", options.words, "A word to pronounce at the end, or several")
      ->transform([](std::string word) { return CLI::detail::to_lower(std::move(word)); })
      ->check(spelling());

  const std::string quantization = "Quantization";
  examples::add_recipe_options(app, options, quantization);
  auto* compare = examples::add_compare_options(app, options, quantization);
  // No bf16: LibTorch's attention takes none where it is given a padding mask.
  app.add_flag("--tf32", options.tf32, "On a GPU, the matmuls of full precision in TF32")
      ->group(quantization);

  const std::string model = "Model (defaults: of --size)";
  app.add_option("--size", given.size, "small: 1 million parameters; large: 5.6 million")
      ->check(CLI::IsMember({"small", "large"}))
      ->capture_default_str()
      ->group(model);
  app.add_option("--layers", given.layers, "Of the encoder, and of the decoder")
      ->check(positive())
      ->group(model);
  app.add_option("--width", given.width)->check(positive())->group(model);
  app.add_option("--heads", given.heads)->check(positive())->group(model);
  app.add_option("--dropout", given.dropout)->check(CLI::Range(0.0, 0.9))->group(model);

  const std::string training = "Training (defaults: of --size)";
  examples::add_training_options(app, train, given, "Words", training);
  app.add_option("--label-smoothing", train.label_smoothing)
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str()
      ->group(training);
  app.add_option("--eval-words", given.eval_words, "Held-out words to count errors on")
      ->check(positive())
      ->group(training);
  app.add_option("--csv", options.csv, "Metrics of each evaluation")
      ->excludes(compare)
      ->group(training);

  options.command_line = examples::parse_or_exit(app, argc, argv, [&] { finish(options, given); });
  return options;
}

}  // namespace pronounce
