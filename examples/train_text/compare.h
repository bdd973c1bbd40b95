// Does training with INT8 cost accuracy? The same model, seed and batches in full precision and by
// a recipe, both evaluated in full precision and in INT8.
#pragma once

#include <torch/torch.h>

#include <string>

#include "options.h"
#include "text_data.h"

namespace train_text {

// Validation losses in nats per byte.
struct Comparison {
  double full_full = 0;    // trained in full precision, evaluated in full precision
  double full_int8 = 0;    // trained in full precision, evaluated in INT8
  double recipe_full = 0;  // trained by the recipe, evaluated in full precision
  double recipe_int8 = 0;  // trained by the recipe, evaluated in INT8
};

// Rows: how the model was trained. Columns: how it is evaluated. Then the differences that matter.
std::string comparison_markdown(const Comparison& result, const std::string& recipe);
std::string comparison_csv(const Comparison& result, const std::string& recipe);

// Writes curves.csv, compare.md and compare.csv into options.out. False when Ctrl-C ended it.
bool compare(const Options& options, const TextData& data, torch::Device device);

}  // namespace train_text
