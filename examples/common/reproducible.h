// Asks LibTorch for kernels that give the same bits in every run, so that runs can be compared and
// a resumed run equals one that was never stopped.
#pragma once

#include <torch/torch.h>

#include <cstdlib>

namespace examples {

// Call it before the first CUDA operation: cuBLAS reads its setting once.
inline void make_reproducible() {
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  // Filling fresh memory finds bugs, costs time, and changes no result here.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
}

}  // namespace examples
