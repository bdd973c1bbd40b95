#include "options.h"

#include <CLI/CLI.hpp>
#include <optional>

#include "../common/command_line.h"
#include "../common/recipes.h"

#ifndef TE_INT8_DEFAULT_FASHION
#define TE_INT8_DEFAULT_FASHION "fashion-mnist"
#endif

namespace fashion {

using examples::not_negative;
using examples::positive;

namespace {

// What a --size means for a model; options override it value by value.
struct Preset {
  int64_t train_images;
  int64_t epochs;
  int64_t batch;
  double learning_rate;
};

Preset preset(const std::string& model, const std::string& size) {
  if (size == "large") {
    // 500 divides both sets: all batches have one shape, for which a GPU's kernels are chosen once.
    return {60000, 25, 500, model == "resnet" ? 4e-3 : 1e-3};
  }
  return {30000, 2, 100, model == "resnet" ? 4e-3 : 2e-3};
}

struct Given {
  std::optional<int64_t> train_images, epochs, batch;
  std::optional<double> learning_rate;
};

void fill_in(Options& options, const Given& given) {
  const Preset start = preset(options.model, options.size);
  options.train_images = given.train_images.value_or(start.train_images);
  TrainOptions& train = options.train;
  train.epochs = given.epochs.value_or(start.epochs);
  train.batch = given.batch.value_or(start.batch);
  train.learning_rate = given.learning_rate.value_or(start.learning_rate);
  train.mode = examples::training_mode(options.recipe);
}

// What no single option can check.
void check(const Options& options) {
  examples::require(
      options.train.batch <= options.train_images,
      "--batch " + std::to_string(options.train.batch) + " is more than --train-images " +
          std::to_string(options.train_images));
  examples::check_compare(options);
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  options.train.seed = 1;
  options.data = TE_INT8_DEFAULT_FASHION;
  options.out = "fashion_compare";

  Given given;
  TrainOptions& train = options.train;
  CLI::App app(
      "Trains a classifier of Fashion-MNIST's images with INT8 in its forward pass, and tests it "
      "in\n"
      "full precision and in INT8. With --compare: trains the same model in full precision too.");
  app.get_formatter()->column_width(34);
  app.add_option("--data", options.data, "The folder with Fashion-MNIST's four files")
      ->capture_default_str();
  examples::add_device_option(app, options.device);
  app.add_option("--seed", train.seed, "Of the weights and batches")->capture_default_str();
  app.add_option("--model", options.model, "A residual network or a vision transformer")
      ->check(CLI::IsMember({"resnet", "vit"}))
      ->capture_default_str();
  app.add_option(
         "--size", options.size,
         "small: minutes on a CPU; large: 0.7 (resnet) or 1.8 (vit) million parameters, for a GPU")
      ->check(CLI::IsMember({"small", "large"}))
      ->capture_default_str();

  const std::string quantization = "Quantization";
  app.add_option("--recipe", options.recipe, "none: full precision; qat: INT8 forward")
      ->check(CLI::IsMember({"none", "qat"}))
      ->capture_default_str()
      ->group(quantization);
  app.add_flag("--bf16", train.bf16, "bf16 autocast: the rest of the forward pass in bf16")
      ->group(quantization);
  auto* compare = examples::add_compare_options(app, options, quantization);

  const std::string training = "Training (defaults: of --size)";
  app.add_option("--train-images", given.train_images, "The first of 60,000 to train on")
      ->check(positive())
      ->group(training);
  app.add_option("--epochs", given.epochs, "Passes over the images")
      ->check(positive())
      ->group(training);
  app.add_option("--batch", given.batch, "Images per step")->check(positive())->group(training);
  app.add_option("--lr", given.learning_rate, "The highest learning rate")
      ->check(positive())
      ->group(training);
  app.add_option("--weight-decay", train.weight_decay)
      ->check(not_negative())
      ->capture_default_str()
      ->group(training);
  app.add_option("--label-smoothing", train.label_smoothing)
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str()
      ->group(training);
  app.add_option("--csv", options.csv, "Metrics of each epoch")->excludes(compare)->group(training);

  options.command_line = examples::parse_or_exit(app, argc, argv, [&] {
    fill_in(options, given);
    check(options);
  });
  return options;
}

}  // namespace fashion
