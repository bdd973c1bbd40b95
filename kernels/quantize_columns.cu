// Codes by column, transposed. Two kernels: the first finds the columns' maxima, the second reads again, and
// turns tiles of codes in shared memory.
#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "numbers.cuh"
#include "quantize.h"

namespace te_int8::kernels {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

/// What 16 bytes hold.
template <typename T>
constexpr int kValues = 16 / static_cast<int>(sizeof(T));

/// A matrix [rows, columns]; codes (T = int8) with the scales of their rows, scale_step elements apart.
template <typename T>
struct Source {
  const T* values;
  int64_t rows, columns;
  const float* row_scales;
  int64_t scale_step;

  /// 16 bytes from (row, column) on; zeros outside.
  template <bool kAligned>
  __device__ uint4 load(int64_t row, int64_t column) const {
    uint4 words = make_uint4(0, 0, 0, 0);
    if (row >= rows || column >= columns) return words;
    const T* from = values + row * columns + column;
    if constexpr (kAligned) {
      words = *reinterpret_cast<const uint4*>(from);
    } else {
      const int64_t left = columns - column;
      T part[kValues<T>];
#pragma unroll
      for (int i = 0; i < kValues<T>; ++i) part[i] = i < left ? from[i] : T();
      memcpy(&words, part, sizeof(words));
    }
    return words;
  }
  __device__ float scale_of(int64_t row) const {
    if constexpr (std::is_same_v<T, int8_t>) return row < rows ? row_scales[row * scale_step] : 0.0F;
    return 1.0F;
  }
  static __device__ float value(const uint4& words, int i, float scale) {
    const float stored = value_of<T>(words, i);
    if constexpr (std::is_same_v<T, int8_t>) return __fmul_rn(stored, scale);
    return stored;
  }
};

constexpr int kAmaxRows = 128;  ///< of a block

/// amax[column] = max(amax[column], bits of |x|) over kAmaxRows rows and 32 * kValues columns a block.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) amax_of_columns(
    const Source<T> x, int64_t strips, uint32_t* __restrict__ amax) {
  constexpr int kColumns = 32 * kValues<T>;
  __shared__ uint32_t of_warp[kWarps][kColumns];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t first = blockIdx.x % strips * kColumns, top = blockIdx.x / strips * kAmaxRows;
  uint32_t most[kValues<T>] = {};
  constexpr int kAtOnce = 4;
  for (int row = warp; row < kAmaxRows; row += kWarps * kAtOnce) {
    uint4 words[kAtOnce];
    float scales[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      words[i] = x.template load<kAligned>(top + row + i * kWarps, first + lane * kValues<T>);
      scales[i] = x.scale_of(top + row + i * kWarps);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < kValues<T>; ++j) most[j] = max(most[j], magnitude(x.value(words[i], j, scales[i])));
    }
  }
#pragma unroll
  for (int j = 0; j < kValues<T>; ++j) of_warp[warp][lane + 32 * j] = most[j];  // so that no two share a bank
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kColumns; i += kThreads) {
    uint32_t result = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) result = max(result, of_warp[w][i]);
    const int64_t column = first + i % 32 * kValues<T> + i / 32;
    if (column < x.columns) atomicMax(amax + column, result);
  }
}

constexpr int kTileRows = 128, kTilesOfBlock = 4;

/// A block turns kTilesOfBlock tiles, one below the other, of 128 rows and 128 bytes of columns. A thread takes four
/// rows of 16 bytes: the four codes of a column are a word of the transpose.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) codes_of_columns(
    const Source<T> x, int64_t strips, const uint32_t* __restrict__ amax, int8_t* __restrict__ codes_t) {
  constexpr int kColumns = 8 * kValues<T>;
  __shared__ uint32_t tile[kColumns][kTileRows / 4 + 1];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t first = blockIdx.x % strips * kColumns;
  const int column = lane % 8 * kValues<T>, quad = warp * 4 + lane / 8;
  // Columns 32 and more apart would meet in a bank.
  const auto place = [](int c, int q) { return q ^ (c / 32 * 4); };

  float inverse[kValues<T>];
#pragma unroll
  for (int j = 0; j < kValues<T>; ++j) {
    inverse[j] = first + column + j < x.columns ? step_of(amax[first + column + j]).inverse : 0.0F;
  }
  const bool whole_words = x.rows % 4 == 0 && reinterpret_cast<uintptr_t>(codes_t) % 4 == 0;
  for (int t = 0; t < kTilesOfBlock; ++t) {
    const int64_t top = (blockIdx.x / strips * kTilesOfBlock + t) * kTileRows;
    if (top >= x.rows) return;
    uint4 words[4];
    float scales[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = x.template load<kAligned>(top + 4 * quad + i, first + column);
      scales[i] = x.scale_of(top + 4 * quad + i);
    }
    if (t > 0) __syncthreads();
#pragma unroll
    for (int j = 0; j < kValues<T>; ++j) {
      const auto code = [&](int i) { return code_of(x.value(words[i], j, scales[i]), inverse[j]); };
      tile[column + j][place(column + j, quad)] = pack(code(0), code(1), code(2), code(3), inverse[j]);
    }
    __syncthreads();
    const int64_t row = top + 4 * lane;
    for (int c = warp; c < kColumns && first + c < x.columns; c += kWarps) {
      const uint32_t packed = tile[c][place(c, lane)];
      int8_t* to = codes_t + (first + c) * x.rows + row;
      if (whole_words) {
        if (row < x.rows) *reinterpret_cast<uint32_t*>(to) = packed;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (row + i < x.rows) to[i] = static_cast<int8_t>(packed >> 8 * i);
        }
      }
    }
  }
}

/// Turns the bits of each column's maximum into its scale, in place.
__global__ void scales_of_columns(float* amax_then_scales, int64_t columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column < columns) amax_then_scales[column] = step_of(__float_as_uint(amax_then_scales[column])).scale;
}

template <typename T>
cudaError_t launch(const Source<T>& x, int8_t* codes_t, float* scales, cudaStream_t stream) {
  if (x.columns == 0) return cudaSuccess;
  auto* amax = reinterpret_cast<uint32_t*>(scales);
  const auto cleared = cudaMemsetAsync(amax, 0, sizeof(*amax) * static_cast<std::size_t>(x.columns), stream);
  if (cleared != cudaSuccess || x.rows == 0) return cleared;
  const auto error = with_bool(is_aligned(x.values) && x.columns % kValues<T> == 0, [&](auto aligned) {
    constexpr bool kAligned = decltype(aligned)::value;
    const auto blocks = [&](int64_t strips, int64_t rows) {
      return static_cast<unsigned>(strips * ceil_div(x.rows, rows));
    };
    const int64_t wide = ceil_div(x.columns, 32 * kValues<T>), narrow = ceil_div(x.columns, 8 * kValues<T>);
    amax_of_columns<T, kAligned><<<blocks(wide, kAmaxRows), kThreads, 0, stream>>>(x, wide, amax);
    codes_of_columns<T, kAligned>
        <<<blocks(narrow, kTileRows * kTilesOfBlock), kThreads, 0, stream>>>(x, narrow, amax, codes_t);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  scales_of_columns<<<static_cast<unsigned>(ceil_div(x.columns, 256)), 256, 0, stream>>>(scales, x.columns);
  return cudaGetLastError();
}

}  // namespace

cudaError_t quantize_columns(
    Type type, const void* x, int64_t rows, int64_t columns, int8_t* codes_t, float* scales, cudaStream_t stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return launch(Source<T>{static_cast<const T*>(x), rows, columns, nullptr, 0}, codes_t, scales, stream);
  });
}

cudaError_t requantize_columns(
    const int8_t* codes, const float* row_scales, bool one_scale, int64_t rows, int64_t columns,
    int8_t* codes_t, float* scales, cudaStream_t stream) {
  return launch(
      Source<int8_t>{codes, rows, columns, row_scales, one_scale ? 0 : 1}, codes_t, scales, stream);
}

}  // namespace te_int8::kernels
