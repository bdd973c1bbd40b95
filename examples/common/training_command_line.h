// The options of the examples whose training is counted in steps and takes any recipe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "command_line.h"
#include "recipes.h"
#include "training_loop.h"

namespace examples {

// What a --size stands for. Each value can be overridden by its own option.
struct TrainingPreset {
  int64_t batch;
  int64_t steps;
  double learning_rate;
};

// What the command line left open is filled in from the preset and from other options.
struct GivenTraining {
  std::optional<int64_t> batch, steps, warmup, eval_every;
  std::optional<double> learning_rate;
};

inline void fill_in(
    TrainingOptions& options, const GivenTraining& given, const TrainingPreset& preset,
    const RecipeOptions& program) {
  options.batch = given.batch.value_or(preset.batch);
  options.steps = given.steps.value_or(preset.steps);
  options.eval_every = given.eval_every.value_or(std::max<int64_t>(1, options.steps / 10));
  options.schedule.peak = given.learning_rate.value_or(preset.learning_rate);
  options.schedule.warmup_steps = given.warmup.value_or(options.steps / 20);
  options.schedule.total_steps = options.steps;
  options.recipe = recipe_named(program.recipe).exclude(program.exclude);
  options.mode = training_mode(program.recipe);
}

// What no single option can check.
inline void check(const RecipeOptions& program, const TrainingOptions& options) {
  require(options.schedule.warmup_steps < options.steps, "--warmup has to be shorter than --steps");
  require(
      program.recipe != "none" || program.exclude.empty(),
      "--exclude has no meaning with --recipe none");
  check_compare(program);
}

inline void add_recipe_options(CLI::App& app, RecipeOptions& program, const std::string& group) {
  app.add_option(
         "--recipe", program.recipe,
         "none: full precision; qat: INT8 forward; switchback: and INT8 input gradients; "
         "int8: all three matmuls. The head's backward is exact")
      ->check(CLI::IsMember({"none", "qat", "switchback", "int8"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--exclude", program.exclude, "Layers to keep in full precision, e.g. head")
      ->group(group);
}

inline void add_training_options(
    CLI::App& app, TrainingOptions& options, GivenTraining& given, const std::string& examples,
    const std::string& group) {
  app.add_option("--steps", given.steps)->check(positive())->group(group);
  app.add_option("--batch", given.batch, examples + " per step")->check(positive())->group(group);
  app.add_option("--lr", given.learning_rate, "The highest learning rate")
      ->check(positive())
      ->group(group);
  app.add_option("--warmup", given.warmup, "Steps; by default a twentieth of all")
      ->check(not_negative())
      ->group(group);
  app.add_option("--weight-decay", options.weight_decay)
      ->check(not_negative())
      ->capture_default_str()
      ->group(group);
  app.add_option("--clip", options.clip, "The gradients' largest norm")
      ->check(positive())
      ->capture_default_str()
      ->group(group);
  app.add_option("--eval-every", given.eval_every, "Steps; by default a tenth of all")
      ->check(positive())
      ->group(group);
}

}  // namespace examples
