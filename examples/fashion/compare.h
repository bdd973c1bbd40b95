// --compare: the same classifier trained in full precision and by QAT, both tested in full precision
// and in INT8. For the one trained in full precision that is post-training quantization.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <vector>

#include "classifier.h"
#include "data.h"
#include "options.h"

namespace fashion {

// On the device, with weights that depend on the seed alone, as all that training draws after it.
std::shared_ptr<Classifier> seeded_classifier(const Options& options, torch::Device device);

// Writes curves.csv, compare.md and compare.csv into options.out. False when Ctrl-C ended it.
bool compare(
    const Options& options, const Dataset& train, const std::vector<Batch>& test,
    torch::Device device);

}  // namespace fashion
