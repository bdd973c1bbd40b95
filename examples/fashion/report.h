// How a run is described: lines for people, fields for a CSV.
#pragma once

#include <torch/torch.h>

#include <string>
#include <vector>

#include "options.h"
#include "trainer.h"

namespace fashion {

// An epoch is a line for people and a row of a CSV.
struct EpochReport {
  std::string heading() const;
  std::string line(const Metrics& metrics) const;
  std::string csv_header() const;
  std::vector<std::string> csv_fields(const Metrics& metrics) const;
};

// Model, data and device, in a sentence or two.
std::string run_description(const Options& options, const Classifier& model, torch::Device device);

}  // namespace fashion
