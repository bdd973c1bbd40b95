#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iomanip>
#include <optional>
#include <sstream>

#include "../common/command_line.h"

#ifndef TE_INT8_DEFAULT_TEXT
#define TE_INT8_DEFAULT_TEXT "kjv.txt"
#endif

namespace train_text {

using examples::not_negative;
using examples::positive;

namespace {

// What a --size stands for. Each value can be overridden by its own option.
struct Preset {
  GptConfig model;
  int64_t batch;
  int64_t steps;
  double learning_rate;
  int64_t eval_windows;
};

Preset preset(const std::string& size) {
  if (size ==
      "large") {  // 11 million parameters, 21 million tokens, five times the text: for a GPU
    return {
        {.layers = 6, .width = 384, .heads = 6, .context = 256, .dropout = 0.1},
        64,
        1300,
        6e-4,
        1024};
  }
  // 0.9 million parameters, 2 million tokens: some minutes on two CPU cores
  return {
      {.layers = 4, .width = 128, .heads = 4, .context = 128, .dropout = 0}, 8, 2000, 2e-3, 256};
}

// What the command line left open is filled in from the preset and from other options.
struct Given {
  std::string size = "small";
  std::optional<int64_t> layers, width, heads, context, batch, steps, warmup, eval_every,
      eval_windows;
  std::optional<double> learning_rate, dropout;
};

void fill_in(Options& options, const Given& given) {
  const Preset start = preset(given.size);
  GptConfig& model = options.model;
  model.layers = given.layers.value_or(start.model.layers);
  model.width = given.width.value_or(start.model.width);
  model.heads = given.heads.value_or(start.model.heads);
  model.context = given.context.value_or(start.model.context);
  model.dropout = given.dropout.value_or(start.model.dropout);
  TrainOptions& train = options.train;
  train.batch = given.batch.value_or(start.batch);
  train.steps = given.steps.value_or(start.steps);
  train.eval_windows = given.eval_windows.value_or(start.eval_windows);
  train.eval_every = given.eval_every.value_or(std::max<int64_t>(1, train.steps / 10));
  train.schedule.peak = given.learning_rate.value_or(start.learning_rate);
  train.schedule.warmup_steps = given.warmup.value_or(train.steps / 20);
  train.schedule.total_steps = train.steps;
  options.sample.seed = train.seed;
  options.sample.bf16 = train.bf16;

  // The gradient of logits has one large value in a row and many small ones, which INT8 would lose: the head's backward is
  // exact.
  if (options.recipe == "switchback") {
    train.recipe = te_int8::Recipe::switchback().rule("head", te_int8::Recipe::qat());
  } else if (options.recipe == "int8") {
    train.recipe = te_int8::Recipe::int8_training().rule("head", te_int8::Recipe::qat());
  } else {
    train.recipe = te_int8::Recipe::qat();
  }
  train.recipe.exclude(options.exclude);
  train.mode = options.recipe == "none" ? te_int8::Mode::Off : te_int8::Mode::QAT;
}

// What no single option can check.
void check(const Options& options) {
  const auto require = [](bool condition, const std::string& message) {
    if (!condition) {
      throw CLI::ValidationError(message);
    }
  };
  const bool quantized = options.recipe != "none";
  require(
      options.model.width % options.model.heads == 0,
      "--width " + std::to_string(options.model.width) + " is not a multiple of --heads " +
          std::to_string(options.model.heads));
  require(
      options.train.schedule.warmup_steps < options.train.steps,
      "--warmup has to be shorter than --steps");
  require(quantized || options.exclude.empty(), "--exclude has no meaning with --recipe none");
  require(quantized || !options.compare, "--compare needs a recipe other than none to compare");
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
  app.add_option(
         "--recipe", options.recipe,
         "none: full precision; qat: INT8 forward; switchback: and INT8 input gradients; "
         "int8: all three matmuls. The head's backward is exact")
      ->check(CLI::IsMember({"none", "qat", "switchback", "int8"}))
      ->capture_default_str()
      ->group(quantization);
  app.add_option("--exclude", options.exclude, "Layers to keep in full precision, e.g. head")
      ->group(quantization);
  app.add_flag("--bf16", train.bf16, "bf16 autocast: the rest of the forward pass in bf16")
      ->group(quantization);
  auto* compare =
      examples::add_compare_options(app, options.compare, options.out, quantization);

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
  app.add_option("--steps", given.steps)->check(positive())->group(training);
  app.add_option("--batch", given.batch, "Windows per step")->check(positive())->group(training);
  app.add_option("--lr", given.learning_rate, "The highest learning rate")
      ->check(positive())
      ->group(training);
  app.add_option("--warmup", given.warmup, "Steps; by default a twentieth of all")
      ->check(not_negative())
      ->group(training);
  app.add_option("--weight-decay", train.weight_decay)
      ->check(not_negative())
      ->capture_default_str()
      ->group(training);
  app.add_option("--clip", train.clip, "The gradients' largest norm")
      ->check(positive())
      ->capture_default_str()
      ->group(training);
  app.add_option("--eval-every", given.eval_every, "Steps; by default a tenth of all")
      ->check(positive())
      ->group(training);
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
  auto* diagnose = app.add_option(
                          "--diagnose", train.diagnose,
                          "A CSV file of what quantization does to each layer")
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

  examples::parse_or_exit(app, argc, argv, [&] {
    fill_in(options, given);
    check(options);
  });
  options.command_line = examples::typed_command(argc, argv);
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
