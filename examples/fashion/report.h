// How a run is described: lines for people, fields for a CSV.
#pragma once

#include <torch/torch.h>

#include <string>
#include <vector>

#include "options.h"
#include "trainer.h"

namespace fashion {

// One line per epoch, with a heading.
std::string metrics_heading();
std::string metrics_line(const Metrics& metrics);

// The same as CSV.
std::string metrics_header();
std::vector<std::string> metrics_fields(const Metrics& metrics);

// Model, data and device, in a sentence or two.
std::string run_description(const Options& options, const Classifier& model, torch::Device device);

}  // namespace fashion
