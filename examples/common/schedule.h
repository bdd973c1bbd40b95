// The learning rate: linear warm-up, then half a cosine down to a tenth.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace examples {

struct WarmupCosine {
  double peak = 1e-3;
  int64_t warmup_steps = 0;
  int64_t total_steps = 1;
  double floor = 0.1;  // the last step's rate, as a fraction of the peak

  // The rate of a step, counted from 0. The first step already moves, the last one is at the floor.
  double at(int64_t step) const {
    if (step < warmup_steps) {
      return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    }
    const auto decay_steps = std::max<int64_t>(1, total_steps - warmup_steps - 1);
    const double progress =
        std::min(1.0, static_cast<double>(step - warmup_steps) / static_cast<double>(decay_steps));
    const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
    return peak * (floor + (1.0 - floor) * cosine);
  }
};

inline void set_learning_rate(torch::optim::Optimizer& optimizer, double rate) {
  for (auto& group : optimizer.param_groups()) {
    group.options().set_lr(rate);
  }
}

}  // namespace examples
