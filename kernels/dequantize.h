// The epilogue of a product as a kernel of its own, for GEMMs that leave int32 sums.
#pragma once

#include "types.h"

namespace te_int8::kernels {

/// Scales and bias of a product [rows, columns], in fp32: fma(b_scale, float(sum) * a_scale, bias). Every kernel
/// uses this formula, so that the choice of one changes no bit.
struct Epilogue {
  const float* a_scales;  ///< one a row, a_step elements apart (0: one for all); null: 1
  int64_t a_step;
  const float* b_scales;  ///< one a column, likewise
  int64_t b_step;
  const void* bias;  ///< one a column; null: none
  Type bias_type;
};

/// Whether this build holds code for the current device.
bool has_code_for_device();

/// sums [rows, columns], `ld` elements from row to row -> out [rows, columns], contiguous.
cudaError_t dequantize(
    const int32_t* sums, int64_t ld, int64_t rows, int64_t columns, const Epilogue& epilogue, Type type,
    void* out, cudaStream_t stream);

}  // namespace te_int8::kernels
