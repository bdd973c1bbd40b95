// How a run is described: lines for people, fields for a CSV.
#pragma once

#include <torch/torch.h>

#include <string>

#include "../common/training_report.h"
#include "gpt.h"
#include "options.h"
#include "text_data.h"
#include "trainer.h"

namespace train_text {

// The lines and rows of evaluations.
const examples::TrainingReport<Metrics>& training_report();

// Model, data and device, in a sentence or two.
std::string run_description(
    const Options& options, const TextData& data, const GptImpl& model, torch::Device device);

// What a terminal can show of a model's bytes: the others become '?'.
std::string printable(const std::string& bytes);

}  // namespace train_text
