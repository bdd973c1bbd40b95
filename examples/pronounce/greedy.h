// Pronunciations by a trained model: at each moment the likeliest phoneme, until it says the end.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <vector>

#include "pronouncer.h"

namespace pronounce {

// letters: int64 [words, letters], all pronounced at once, by a model in eval mode and in whatever
// precision the scope around it says. A word whose end never comes is cut off at kLongest.
std::vector<Pronunciation> pronounce(
    Pronouncer& model, const torch::Tensor& letters, int64_t length_unit);

}  // namespace pronounce
