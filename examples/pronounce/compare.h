// pronounce --compare.
#pragma once

#include <torch/torch.h>

#include "options.h"

namespace pronounce {

// Writes curves.csv, compare.md and compare.csv into options.out. False when Ctrl-C ended it.
bool compare(
    const Options& options, const Dictionary& dictionary, const Split& words, torch::Device device);

}  // namespace pronounce
