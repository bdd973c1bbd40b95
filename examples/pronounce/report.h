// How a run is described.
#pragma once

#include <torch/torch.h>

#include <string>

#include "../common/training_report.h"
#include "options.h"
#include "trainer.h"

namespace pronounce {

// The lines and rows of evaluations. Error rates are in percent.
const examples::TrainingReport<Metrics>& training_report();

// Model, data and device, in a sentence or two.
std::string run_description(
    const Options& options, const Dictionary& dictionary, const Split& words,
    const PronouncerImpl& model, torch::Device device);

}  // namespace pronounce
