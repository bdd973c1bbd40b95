// Images that a classifier learns in a few steps.
#pragma once

#include <torch/torch.h>

#include <cstdint>

#include "../examples/fashion/data.h"

namespace te_int8_tests {

// Images of noise with one bright row, whose place is the class.
inline fashion::Dataset striped_images(int64_t count) {
  const auto noise = torch::randint(0, 60, {count, fashion::kSide, fashion::kSide}, torch::kUInt8);
  const auto labels = torch::arange(count, torch::kLong) % fashion::kClasses;
  for (int64_t i = 0; i < count; ++i) {
    noise[i][2 + labels[i].item<int64_t>() * 2].fill_(250);
  }
  return {noise, labels};
}

}  // namespace te_int8_tests
