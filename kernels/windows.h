// Convolutions of codes [N,D,H,W,C], channels last: as products, for which the windows are rows of a matrix, and directly.
//
//   windows [N * positions, ld], a row per position: codes in the order [*window, channels of the group], then zeros
//   weights [O, *window, channels of the group]
#pragma once

#include <cuda_runtime.h>

#include "dequantize.h"
#include "types.h"

namespace te_int8::kernels {

/// Three spatial dimensions whatever there are, the first ones 1.
struct WindowGeometry {
  int64_t samples, channels, group_channels, first_channel;
  int64_t size[3], window[3], positions[3], stride[3], padding[3], dilation[3];
  __host__ __device__ int64_t depth() const { return window[0] * window[1] * window[2] * group_channels; }
  __host__ __device__ int64_t rows() const { return samples * positions[0] * positions[1] * positions[2]; }
};

/// Rows [first, first + count) of the matrix; `ld` is at least depth(). Launches on `stream` and returns the launch's error.
cudaError_t copy_windows(
    const int8_t* codes, const WindowGeometry& geometry, int64_t first, int64_t count, int64_t ld, int8_t* windows,
    cudaStream_t stream);

inline constexpr int64_t kMostDirectRows = 1 << 30;

/// out [rows, out_channels] = epilogue(sums over the windows), whose a_scales has one a sample; all groups at once, whatever
/// geometry.first_channel. For windows whose sums fit an int32, and up to kMostDirectRows rows.
cudaError_t convolve_directly(
    const int8_t* codes, const int8_t* weights, const WindowGeometry& geometry, int64_t out_channels, const Epilogue& epilogue,
    Type type, void* out, cudaStream_t stream);

}  // namespace te_int8::kernels
