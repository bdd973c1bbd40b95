// The same bits in every run, so that runs can be compared and a resumed run equals one that was
// never stopped.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <cstdlib>

namespace examples {

// Asks LibTorch for kernels that are deterministic. Call it before the first CUDA operation: cuBLAS reads its setting once.
inline void make_reproducible() {
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  // Filling fresh memory finds bugs, costs time, and changes no result here.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
}

// On the device, with weights that depend on the seed alone, as all that training draws after it.
template <typename Model, typename Config>
Model seeded_model(const Config& config, uint64_t seed, torch::Device device) {
  torch::manual_seed(seed);
  Model model(config);
  model->to(device);
  return model;
}

}  // namespace examples
