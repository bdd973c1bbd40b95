// IDX files, the format of MNIST and its relatives: what the values are and how many dimensions they
// have, the sizes, the values.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>

namespace fashion {

// Unsigned bytes of `dimensions` dimensions: a uint8 tensor of the file's sizes. A file that is
// anything else, or longer or shorter than its sizes say, is an error that names it.
torch::Tensor read_idx(const std::string& path, int64_t dimensions);

}  // namespace fashion
