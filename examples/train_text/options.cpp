#include "options.h"

#include <filesystem>
#include <iomanip>
#include <optional>
#include <sstream>

#include "../common/training_command_line.h"

#ifndef TE_INT8_DEFAULT_TEXT
#define TE_INT8_DEFAULT_TEXT "kjv.txt"
#endif

namespace train_text {

using examples::not_negative;
using examples::positive;
using examples::require;

namespace {

// What a --size stands for. Each value can be overridden by its own option.
struct Preset {
  GptConfig model;
  examples::TrainingPreset training;
  int64_t eval_windows;
};

Preset preset(const std::string& size) {
  if (size ==
      "large") {  // 11 million parameters, 21 million tokens, five times the text: for a GPU
    return {
        {.layers = 6, .width = 384, .heads = 6, .context = 256, .dropout = 0.1},
        {.batch = 64, .steps = 1300, .learning_rate = 6e-4},
        1024};
  }
  // 0.9 million parameters, 2 million tokens: some minutes on two CPU cores
  return {
      {.layers = 4, .width = 128, .heads = 4, .context = 128, .dropout = 0},
      {.batch = 8, .steps = 2000, .learning_rate = 2e-3},
      256};
}

// What the command line left open is filled in from the preset and from other options.
struct Given : examples::GivenTraining {
  std::string size = "small";
  std::optional<int64_t> layers, width, heads, context, eval_windows;
  std::optional<double> dropout;
};

void fill_in(Options& options, const Given& given) {
  const Preset start = preset(given.size);
  GptConfig& model = options.model;
  model.layers = given.layers.value_or(start.model.layers);
  model.width = given.width.value_or(start.model.width);
  model.heads = given.heads.value_or(start.model.heads);
  model.context = given.context.value_or(start.model.context);
  model.dropout = given.dropout.value_or(start.model.dropout);
  examples::fill_in(options.train, given, start.training, options);
  options.train.eval_windows = given.eval_windows.value_or(start.eval_windows);
  options.sample.seed = options.train.seed;
  options.sample.bf16 = options.train.bf16;
}

// What no single option can check.
void check(const Options& options) {
  examples::check(options, options.train);
  require(
      options.model.width % options.model.heads == 0,
      "--width " + std::to_string(options.model.width) + " is not a multiple of --heads " +
          std::to_string(options.model.heads));
  require(!options.sample.prompt.empty(), "--prompt must not be empty");
  if (options.resume) {
    require(
        std::filesystem::exists(options.checkpoint),
        "--resume: there is no checkpoint " + options.checkpoint);
  } else if (!options.checkpoint.empty()) {
    require(
        !std::filesystem::exists(options.checkpoint),
        options.checkpoint + " exists: add --resume to continue that run, or remove the file");
  }
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  Given given;
  TrainOptions& train = options.train;
  train.eval_windows = 256;
  train.seed = 1;
  options.sample.bytes = 300;
  options.data = TE_INT8_DEFAULT_TEXT;
  options.out = "train_text_compare";

  CLI::App app(
      "Trains a GPT on the bytes of a text, with INT8 in its forward pass, and validates it.\n"
      "With --compare: trains the same model in full precision too, and prints how they differ.");
  app.get_formatter()->column_width(34);
  app.add_option("--data", options.data, "The text")->capture_default_str();
  examples::add_device_option(app, options.device);
  app.add_option("--seed", train.seed, "Of the weights, batches and sample")->capture_default_str();

  const std::string quantization = "Quantization";
  examples::add_recipe_options(app, options, quantization);
  app.add_flag("--bf16", train.bf16, "bf16 autocast: the rest of the forward pass in bf16")
      ->group(quantization);
  auto* compare = examples::add_compare_options(app, options, quantization);

  const std::string model = "Model (defaults: of --size)";
  app.add_option("--size", given.size, "small: 0.9 million parameters; large: 11 million")
      ->check(CLI::IsMember({"small", "large"}))
      ->capture_default_str()
      ->group(model);
  app.add_option("--layers", given.layers)->check(positive())->group(model);
  app.add_option("--width", given.width)->check(positive())->group(model);
  app.add_option("--heads", given.heads)->check(positive())->group(model);
  app.add_option("--context", given.context, "Tokens that the model sees at once")
      ->check(positive())
      ->group(model);
  app.add_option("--dropout", given.dropout)->check(CLI::Range(0.0, 0.9))->group(model);
  app.add_flag("--tie-head", options.model.tie_head, "The head shares the embedding's weight")
      ->group(model);

  const std::string training = "Training (defaults: of --size)";
  examples::add_training_options(app, train, given, "Windows", training);
  app.add_option("--eval-windows", given.eval_windows, "Windows of the validation text")
      ->check(positive())
      ->group(training);

  const std::string files = "Files and sample";
  app.add_option("--csv", options.csv, "Metrics of each evaluation")
      ->excludes(compare)
      ->group(files);
  app.add_option("--init", options.init, "A checkpoint to begin with its model: fine-tuning")
      ->check(CLI::ExistingFile)
      ->excludes(compare)
      ->group(files);
  auto* diagnose =
      app.add_option(
             "--diagnose", train.diagnose, "A CSV file of what quantization does to each layer")
          ->excludes(compare)
          ->group(quantization);
  app.add_option("--diagnose-every", train.diagnose_every, "Steps between two that it looks at")
      ->check(positive())
      ->needs(diagnose)
      ->capture_default_str()
      ->group(quantization);
  auto* checkpoint =
      app.add_option("--checkpoint", options.checkpoint, "Written at each evaluation and at Ctrl-C")
          ->excludes(compare)
          ->group(files);
  app.add_flag("--resume", options.resume, "Continue from the checkpoint")
      ->needs(checkpoint)
      ->group(files);
  app.add_option("--sample", options.sample.bytes, "Bytes of text to write at the end")
      ->check(not_negative())
      ->capture_default_str()
      ->group(files);
  app.add_option("--prompt", options.sample.prompt, "What the sample begins with")->group(files);
  app.add_option("--temperature", options.sample.temperature, "Of the sample")
      ->check(positive())
      ->capture_default_str()
      ->group(files);

  options.command_line = examples::parse_or_exit(app, argc, argv, [&] {
    fill_in(options, given);
    check(options);
  });
  return options;
}

examples::Settings run_settings(const Options& options, const std::string& text) {
  const auto number = [](auto value) {
    std::ostringstream out;
    out << std::setprecision(17) << value;
    return out.str();
  };
  std::string excluded;
  for (const std::string& glob : options.exclude) {
    excluded += glob + ' ';
  }
  const GptConfig& model = options.model;
  const TrainOptions& train = options.train;
  return {
      {"the text's fingerprint", fingerprint(text)},
      {"--recipe", options.recipe},
      {"--exclude", excluded},
      {"--bf16", number(train.bf16)},
      {"--seed", number(train.seed)},
      {"--layers", number(model.layers)},
      {"--width", number(model.width)},
      {"--heads", number(model.heads)},
      {"--context", number(model.context)},
      {"--dropout", number(model.dropout)},
      {"--tie-head", number(model.tie_head)},
      {"--steps", number(train.steps)},
      {"--batch", number(train.batch)},
      {"--lr", number(train.schedule.peak)},
      {"--warmup", number(train.schedule.warmup_steps)},
      {"--weight-decay", number(train.weight_decay)},
      {"--clip", number(train.clip)},
      {"--eval-every", number(train.eval_every)},
      {"--eval-windows", number(train.eval_windows)}};
}

}  // namespace train_text
