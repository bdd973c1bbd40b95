// Codes by row with the maxima of the columns: the first half of quantize_rows_and_columns.
#pragma once

#include "types.h"

namespace te_int8::kernels {

/// Whether quantize_rows_finding_maxima computes it, and sooner than quantize_rows and the maxima by themselves: a matrix of at
/// least 32 MiB, rows of 2,048 values to 32 KiB, aligned.
bool fits_rows_and_maxima(Type type, const void* x, int64_t rows, int64_t width, const int8_t* codes);

/// quantize_rows, which raises column_amax [width] to the bits of max |x| of each column.
cudaError_t quantize_rows_finding_maxima(
    Type type, const void* x, int64_t rows, int64_t width, int sms, int8_t* codes, float* scales, uint32_t* column_amax,
    cudaStream_t stream);

}  // namespace te_int8::kernels
