// A matrix in tiles of 128 rows by 128 bytes, for kernels that combine the rows of a column.
#pragma once

#include <cstring>
#include <type_traits>

#include "launch.h"
#include "numbers.cuh"

namespace te_int8::kernels {

constexpr int kThreads = 256, kTileRows = 128;

/// What 16 bytes hold.
template <typename T>
constexpr int kValues = 16 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kTileColumns = 8 * kValues<T>;

/// A matrix [rows, columns]; codes (T = int8) with the scales of their rows, scale_step elements apart.
template <typename T>
struct Source {
  const T* values;
  int64_t rows, columns;
  const float* row_scales = nullptr;
  int64_t scale_step = 0;

  /// 16 bytes from (row, column) on; zeros outside.
  template <bool kAligned, bool kLastUse>
  __device__ uint4 load(int64_t row, int64_t column) const {
    uint4 words = make_uint4(0, 0, 0, 0);
    if (row >= rows || column >= columns) return words;
    const T* from = values + row * columns + column;
    if constexpr (kAligned) {
      const auto* whole = reinterpret_cast<const uint4*>(from);
      words = kLastUse ? __ldcs(whole) : *whole;
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
};

/// Four rows of 16 bytes that a thread takes. Those that it loads from a tile itself: a warp reads 16 rows of 128 bytes.
template <typename T>
struct Quad {
  uint4 words[4];
  alignas(16) float scales[4];

  static __device__ int column() { return static_cast<int>(threadIdx.x % 8) * kValues<T>; }
  static __device__ int index() { return static_cast<int>(threadIdx.x / 8); }

  template <bool kAligned, bool kLastUse>
  __device__ void load(const Source<T>& x, int64_t top, int64_t left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = x.template load<kAligned, kLastUse>(top + 4 * index() + i, left + column());
    load_scales(x, top + 4 * index());
  }
  /// Those of the rows from `row` on, a multiple of four.
  __device__ void load_scales(const Source<T>& x, int64_t row) {
    if (x.scale_step == 1 && row + 4 <= x.rows && is_aligned(x.row_scales)) {
      *reinterpret_cast<float4*>(scales) = *reinterpret_cast<const float4*>(x.row_scales + row);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) scales[i] = x.scale_of(row + i);
  }
  __device__ float value(int row, int column) const {
    if constexpr (std::is_same_v<T, int8_t>) {
      return __fmul_rn(value_of_code(words[row], column), scales[row]);
    } else {
      return value_of<T>(words[row], column);
    }
  }
};

/// Maxima of magnitudes as bits, of as many columns in a word as there is room for.
template <typename T>
struct Maxima {
  static constexpr int kWords = 4, kColumns = static_cast<int>(4 / sizeof(T));
  static constexpr uint32_t kMagnitude = sizeof(T) == 4 ? 0x7fffffffU : 0x7fff7fffU;
  /// What all columns of a warp's rows have at least.
  static __device__ uint32_t least(const Quad<T>&) { return 0; }
  static __device__ uint32_t of(const Quad<T>& quad, int row, int word) {
    return word_of(quad.words[row], word) & kMagnitude;
  }
  static __device__ uint32_t larger(uint32_t a, uint32_t b) { return sizeof(T) == 4 ? max(a, b) : __vmaxu2(a, b); }
  /// The bits of the i-th column as those of a float.
  static __device__ uint32_t bits(uint32_t word, int i) {
    return magnitude(value_of<T>(make_uint4(word, 0, 0, 0), i));
  }
};
/// Of codes the products by their row's scale, whose sign the maximum of floats ignores for nothing. It ignores NaN too:
/// rows with such a scale have infinities instead, which mean the same to a column.
template <>
struct Maxima<int8_t> {
  static constexpr int kWords = 16, kColumns = 1;
  static constexpr uint32_t kInfinity = 0x7f800000U;
  static __device__ uint32_t least(const Quad<int8_t>& quad) {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) finite = finite && magnitude(quad.scales[i]) < kInfinity;
    return __all_sync(0xffffffffU, finite) ? 0 : kInfinity;
  }
  static __device__ uint32_t of(const Quad<int8_t>& quad, int row, int word) {
    return __float_as_uint(quad.value(row, word));
  }
  static __device__ uint32_t larger(uint32_t a, uint32_t b) {
    return __float_as_uint(fmaxf(fabsf(__uint_as_float(a)), fabsf(__uint_as_float(b))));
  }
  static __device__ uint32_t bits(uint32_t word, int) { return word; }
};

/// Of a quad's four rows.
template <typename T>
__device__ uint32_t maximum_of_rows(const Quad<T>& quad, int word) {
  using M = Maxima<T>;
  return M::larger(
      M::larger(M::of(quad, 0, word), M::of(quad, 1, word)), M::larger(M::of(quad, 2, word), M::of(quad, 3, word)));
}

/// Combines what the four lanes of a warp with the same columns have of them, and shares it out: a half each by pairs 16
/// lanes apart, a quarter by those 8 apart. The quarter of a lane begins at the word that is returned, and lies first.
template <int kWords, typename V, typename Combine>
__device__ int share_out(V (&of_lane)[kWords], const Combine& combine) {
  constexpr int kHalf = kWords / 2, kQuarter = kWords / 4;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool second_half = (lane & 16) != 0, second_quarter = (lane & 8) != 0;
#pragma unroll
  for (int j = 0; j < kHalf; ++j) {
    const V given = second_half ? of_lane[j] : of_lane[j + kHalf], kept = second_half ? of_lane[j + kHalf] : of_lane[j];
    of_lane[j] = combine(kept, __shfl_xor_sync(0xffffffffU, given, 16));
  }
#pragma unroll
  for (int j = 0; j < kQuarter; ++j) {
    const V given = second_quarter ? of_lane[j] : of_lane[j + kQuarter];
    const V kept = second_quarter ? of_lane[j + kQuarter] : of_lane[j];
    of_lane[j] = combine(kept, __shfl_xor_sync(0xffffffffU, given, 8));
  }
  return (second_half ? kHalf : 0) + (second_quarter ? kQuarter : 0);
}

/// How many rows column_sums adds up one after the other, in what becomes a part of a tile's sum.
constexpr int kSummedRows = 16;

/// Word `index` of each row that a warp has in the columns of this lane, where `index` is the lane's number among the four
/// with these columns.
template <typename T>
__device__ void share_rows(const Quad<T>& quad, uint32_t (&rows)[kSummedRows]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool second_half = (lane & 16) != 0, second_quarter = (lane & 8) != 0;
  uint32_t half[2][8];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = word_of(quad.words[i], j), high = word_of(quad.words[i], j + 2);
      const uint32_t kept = second_half ? high : low, got = __shfl_xor_sync(0xffffffffU, second_half ? low : high, 16);
      half[j][i] = second_half ? got : kept;
      half[j][i + 4] = second_half ? kept : got;
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t kept = second_quarter ? half[1][i] : half[0][i];
    const uint32_t got = __shfl_xor_sync(0xffffffffU, second_quarter ? half[0][i] : half[1][i], 8);
    const int row = i % 4 + i / 4 * 8;
    rows[row] = second_quarter ? got : kept;
    rows[row + 4] = second_quarter ? kept : got;
  }
}

/// The sums of a tile's columns, of which `to` takes those that there are.
template <typename T>
__device__ void sums_of_tile(const Quad<T>& quad, int64_t left, int64_t columns, float* to) {
  constexpr int kInWord = kValues<T> / 4;
  __shared__ float of_part[kThreads / 32][kTileColumns<T>];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  uint32_t rows[kSummedRows];
  share_rows(quad, rows);
#pragma unroll
  for (int j = 0; j < kInWord; ++j) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kSummedRows; ++i) sum += value_of<T>(make_uint4(rows[i], 0, 0, 0), j);
    of_part[warp][lane % 8 * kValues<T> + lane / 8 * kInWord + j] = sum;
  }
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kTileColumns<T> || left + i >= columns) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += of_part[w][i];
  to[left + i] = sum;
}

/// Tiles and strips of a matrix.
template <typename T>
struct Grid {
  explicit Grid(const Source<T>& x)
      : tiles(static_cast<unsigned>(ceil_div(x.rows, kTileRows))),
        strips(static_cast<unsigned>(ceil_div(x.columns, kTileColumns<T>))) {}
  unsigned tiles, strips;
};

}  // namespace te_int8::kernels
