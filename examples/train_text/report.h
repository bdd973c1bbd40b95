// How a run is described: lines for people, fields for a CSV.
#pragma once

#include <torch/torch.h>

#include <string>
#include <vector>

#include "gpt.h"
#include "options.h"
#include "text_data.h"
#include "trainer.h"

namespace train_text {

// One line per evaluation, with a heading.
std::string metrics_heading();
std::string metrics_line(const Metrics& metrics);

// The same as CSV. Losses have all their digits: resumed runs are compared by them.
std::string metrics_header();
std::vector<std::string> metrics_fields(const Metrics& metrics);

// Model, data and device, in a sentence or two.
std::string run_description(
    const Options& options, const TextData& data, const GptImpl& model, torch::Device device);

// What a terminal can show of a model's bytes: the others become '?'.
std::string printable(const std::string& bytes);

}  // namespace train_text
