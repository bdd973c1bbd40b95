// Values from codes.
#include <algorithm>
#include <bit>

#include "launch.h"
#include "numbers.cuh"
#include "quantize.h"

namespace te_int8::kernels {
namespace {

constexpr int kThreads = 256, kCodes = 16;  ///< codes of a thread

/// A thread computes kCodes columns of every so many rows: blockDim.y rows share a block.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) values_of_codes(
    const int8_t* __restrict__ codes, const float* __restrict__ scales, int64_t scale_step, int64_t rows, int64_t width,
    T* __restrict__ out) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kCodes;
  if (column >= width) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += step) {
    const float scale = scales[row * scale_step];
    const int8_t* from = codes + row * width + column;
    T* to = out + row * width + column;
    if constexpr (kAligned) {
      const uint4 words = *reinterpret_cast<const uint4*>(from);
      constexpr int kPart = 16 / static_cast<int>(sizeof(T));
#pragma unroll
      for (int part = 0; part < kCodes / kPart; ++part) {
        struct alignas(16) { T values[kPart]; } result;
#pragma unroll
        for (int i = 0; i < kPart; ++i) {
          result.values[i] = static_cast<T>(__fmul_rn(value_of_code(words, part * kPart + i), scale));
        }
        reinterpret_cast<decltype(result)*>(to)[part] = result;
      }
    } else {
      const int64_t count = min(static_cast<int64_t>(kCodes), width - column);
      for (int i = 0; i < count; ++i) to[i] = static_cast<T>(__fmul_rn(static_cast<float>(from[i]), scale));
    }
  }
}

}  // namespace

cudaError_t dequantize_rows(
    const int8_t* codes, const float* scales, bool one_scale, int64_t rows, int64_t width, Type type, void* out,
    cudaStream_t stream) {
  if (rows == 0 || width == 0) return cudaSuccess;
  const auto threads_of_row = static_cast<uint64_t>(ceil_div(width, kCodes));
  const auto across = static_cast<unsigned>(std::min<uint64_t>(kThreads, std::bit_ceil(threads_of_row)));
  const dim3 block(across, kThreads / across);
  constexpr int64_t kMostBlocks = 32768;  // of rows; more take turns
  const dim3 grid(
      static_cast<unsigned>(ceil_div(width, int64_t{kCodes} * across)),
      static_cast<unsigned>(std::min(ceil_div(rows, block.y), kMostBlocks)));
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_bool(is_aligned(codes) && is_aligned(out) && width % kCodes == 0, [&](auto aligned) {
      values_of_codes<T, decltype(aligned)::value><<<grid, block, 0, stream>>>(
          codes, scales, one_scale ? 0 : 1, rows, width, static_cast<T*>(out));
      return cudaGetLastError();
    });
  });
}

}  // namespace te_int8::kernels
