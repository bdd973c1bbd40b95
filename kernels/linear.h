// A whole linear layer in one kernel, for few rows.
#pragma once

#include "dequantize.h"
#include "types.h"

namespace te_int8::kernels {

/// out [m, n] = epilogue(codes of x [m, k], by row, x b [n, k]), all contiguous. Of the epilogue a_scales are the codes'
/// own and not read.
struct Linear {
  const void* x;
  Type x_type;
  const int8_t* b;
  int64_t m, n, k;
  Epilogue epilogue = {};
  Type type = Type::Float;
  void* out = nullptr;
};

inline constexpr int64_t kFewRows = 8;

/// Whether linear_of_few_rows computes it on the current device: at most kFewRows rows of at most 8 KB, K of whole 16
/// codes, aligned addresses, code for compute capability 8.0 or later.
bool fits_linear_of_few_rows(const Linear& linear);

/// Launches on `stream`, and returns the launch's error.
cudaError_t linear_of_few_rows(const Linear& linear, int sms, cudaStream_t stream);

}  // namespace te_int8::kernels
