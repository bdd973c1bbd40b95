// A batch norm with fixed statistics as scales and a bias.
#pragma once

#include "types.h"

namespace te_int8::kernels {

/// One value a channel; null: none.
struct Values {
  const void* data;
  Type type;
};

/// What the norm makes of scale * sum + added, where `scales` are `scale_step` elements apart (0: one for all): scales and bias of
/// the whole, [channels] each. Launches on `stream` and returns the launch's error.
struct BatchNormOf {
  Values mean, variance, weight, bias;
  float eps;
  const float* scales;
  int64_t scale_step;
  Values added;
};
cudaError_t fold_batch_norm(
    const BatchNormOf& norm, int64_t channels, float* folded_scales, float* folded_bias, cudaStream_t stream);

}  // namespace te_int8::kernels
