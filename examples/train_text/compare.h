// --compare: the same GPT in full precision and by a recipe, both evaluated in full precision and in
// INT8.
#pragma once

#include <torch/torch.h>

#include "options.h"
#include "text_data.h"

namespace train_text {

// Writes curves.csv, compare.md and compare.csv into options.out. False when Ctrl-C ended it.
bool compare(const Options& options, const TextData& data, torch::Device device);

}  // namespace train_text
