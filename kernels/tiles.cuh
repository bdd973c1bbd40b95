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

  /// 16 bytes of a row that has `left` values from there on; zeros beyond.
  template <bool kAligned, bool kLastUse>
  static __device__ uint4 load(const T* from, int64_t left) {
    uint4 words;
    if constexpr (kAligned) {
      const auto* whole = reinterpret_cast<const uint4*>(from);
      words = kLastUse ? __ldcs(whole) : *whole;
    } else {
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
    const int64_t row = top + 4 * index(), first = left + column();
    const int there = first < x.columns ? static_cast<int>(max(int64_t{0}, min(int64_t{4}, x.rows - row))) : 0;
    const T* from = x.values + row * x.columns + first;
#pragma unroll
    for (int i = 0; i < 4; ++i, from += x.columns) {
      words[i] = i < there ? Source<T>::template load<kAligned, kLastUse>(from, x.columns - first) : make_uint4(0, 0, 0, 0);
    }
    load_scales(x, row);
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
  static __device__ uint32_t larger(uint32_t a, uint32_t b) { return sizeof(T) == 4 ? max(a, b) : __vmaxu2(a, b); }
  /// The bits of the i-th column as those of a float.
  static __device__ uint32_t bits(uint32_t word, int i) {
    return magnitude(value_of<T>(make_uint4(word, 0, 0, 0), i));
  }
  /// Raises `most` to what a quad's four rows have.
  static __device__ void raise(const Quad<T>& quad, uint32_t (&most)[kWords]) {
    constexpr uint32_t kMagnitude = sizeof(T) == 4 ? 0x7fffffffU : 0x7fff7fffU;
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) most[j] = larger(most[j], word_of(quad.words[i], j) & kMagnitude);
    }
  }
};
/// Of codes the products by their row's scale, whose sign the maximum of floats ignores at no cost. It ignores NaN too: such
/// products count as infinities, which mean the same to a column.
template <>
struct Maxima<int8_t> {
  static constexpr int kWords = 16, kColumns = 1;
  static __device__ uint32_t larger(uint32_t a, uint32_t b) {
    return __float_as_uint(fmaxf(fabsf(__uint_as_float(a)), fabsf(__uint_as_float(b))));
  }
  static __device__ uint32_t bits(uint32_t word, int) { return word; }
  static __device__ void raise(const Quad<int8_t>& quad, uint32_t (&most)[kWords]) {
    // Below 2^104, 2^23 * scale is exact, so that fma(2^23 + |code|, scale, -2^23 * scale) is |code| * scale, rounded once.
    bool small = true;
    float minus[4];
    uint4 magnitudes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      small = small && fabsf(quad.scales[i]) < 0x1p104F;
      minus[i] = __fmul_rn(-0x1p23F, quad.scales[i]);
      magnitudes[i] = magnitudes_of_codes(quad.words[i]);
    }
    if (!small) {
      raise_by_large(quad, most);
      return;
    }
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float product = __fmaf_rn(raised_magnitude(magnitudes[i], j), quad.scales[i], minus[i]);
        most[j] = larger(most[j], __float_as_uint(product));
      }
    }
  }

 private:
  static __device__ void raise_by_large(const Quad<int8_t>& quad, uint32_t (&most)[kWords]) {
    constexpr uint32_t kInfinity = 0x7f800000U;
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) most[j] = larger(most[j], min(magnitude(quad.value(i, j)), kInfinity));
    }
  }
};

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
