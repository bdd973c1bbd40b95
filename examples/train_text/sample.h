// Text that a trained model writes.
#pragma once

#include <te_int8/te_int8.h>

#include <cstdint>
#include <string>

#include "gpt.h"

namespace train_text {

struct SampleOptions {
  std::string prompt = "\n";
  int64_t bytes = 0;  // how many to write after the prompt
  double temperature = 0.8;
  uint64_t seed = 0;
  bool bf16 = false;
};

// The prompt and what the model makes of it. `mode` is Inference, or Off for full precision.
std::string sample(
    Gpt& model, torch::Device device, const SampleOptions& options, te_int8::Mode mode,
    const te_int8::Recipe& recipe);

}  // namespace train_text
