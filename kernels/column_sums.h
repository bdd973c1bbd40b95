// The second half of column_sums, for kernels that find the first on their way.
#pragma once

#include "types.h"

namespace te_int8::kernels {

/// The sums of each tile's columns (tiles.cuh) of a matrix [rows, columns] -> those of the columns, [columns].
cudaError_t add_up_tiles(const float* of_tile, int64_t rows, int64_t columns, float* sums, cudaStream_t stream);

/// The same of the sums of each tile's parts: of 16 rows, added up one after the other from 0 on.
cudaError_t add_up_parts(const float* of_part, int64_t rows, int64_t columns, float* sums, cudaStream_t stream);

}  // namespace te_int8::kernels
