// How long the model takes in full precision and in INT8.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "embedder.h"

namespace minilm {

struct Latency {
  Shape shape;
  double full_ms;  // medians
  double int8_ms;
  int64_t runs;  // of each
};

// Runs both in turn, so that what else the machine does meets both alike, for about `seconds` and at
// least 10 times. A run begins with random tokens and ends with the embeddings on the CPU.
Latency measure(Embedder& embedder, Shape shape, double seconds);

std::string latency_table(const std::vector<Latency>& latencies);

}  // namespace minilm
