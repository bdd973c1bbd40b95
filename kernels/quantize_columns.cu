// Codes by column, transposed. See Note [Columns].
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "launch.h"
#include "numbers.cuh"
#include "pdl.cuh"
#include "quantize.h"

namespace te_int8::kernels {
namespace {

// Note [Columns]
//
// A column's scale is known only when all of it has been read, so everything is read twice: the second time from
// the L2 cache. The matrix is cut into tiles of 128 rows by 128 bytes, a column of tiles is a strip, and a group of
// strips is as much as fits into the cache twice. A launch finds the maxima of one group and makes the codes of the
// group before it, a tile a block; the order of launches is all the synchronisation there is. Blocks that find maxima
// do not wait for the launch before theirs: they read x, which an ordinary launch came after, and write to columns of
// their own, which were cleared before it.

constexpr int kThreads = 256, kTileRows = 128;
constexpr int64_t kGroupBytes = 16 << 20;

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
  const float* row_scales;
  int64_t scale_step;

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
  static __device__ float value(const uint4& words, int i, float scale) {
    const float stored = value_of<T>(words, i);
    if constexpr (std::is_same_v<T, int8_t>) return __fmul_rn(stored, scale);
    return stored;
  }
};

/// The four rows of 16 bytes of a tile that a thread takes: a warp reads 16 rows of 128 bytes.
template <typename T>
struct Quad {
  uint4 words[4];
  float scales[4];

  static __device__ int column() { return static_cast<int>(threadIdx.x % 8) * kValues<T>; }
  static __device__ int index() { return static_cast<int>(threadIdx.x / 8); }

  template <bool kAligned, bool kLastUse>
  __device__ void load(const Source<T>& x, int64_t top, int64_t left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = x.template load<kAligned, kLastUse>(top + 4 * index() + i, left + column());
      scales[i] = x.scale_of(top + 4 * index() + i);
    }
  }
  __device__ float value(int row, int column) const { return Source<T>::value(words[row], column, scales[row]); }
};

/// Maxima of magnitudes as bits, of as many columns in a word as there is room for.
template <typename T>
struct Maxima {
  static constexpr int kWords = 4, kColumns = static_cast<int>(4 / sizeof(T));
  static constexpr uint32_t kMagnitude = sizeof(T) == 4 ? 0x7fffffffU : 0x7fff7fffU;
  static __device__ uint32_t of(const Quad<T>& quad, int row, int word) {
    return word_of(quad.words[row], word) & kMagnitude;
  }
  static __device__ uint32_t larger(uint32_t a, uint32_t b) { return sizeof(T) == 4 ? max(a, b) : __vmaxu2(a, b); }
  /// The bits of the i-th column as those of a float.
  static __device__ uint32_t bits(uint32_t word, int i) {
    return magnitude(value_of<T>(make_uint4(word, 0, 0, 0), i));
  }
};
template <>
struct Maxima<int8_t> {
  static constexpr int kWords = 16, kColumns = 1;
  static __device__ uint32_t of(const Quad<int8_t>& quad, int row, int word) { return magnitude(quad.value(row, word)); }
  static __device__ uint32_t larger(uint32_t a, uint32_t b) { return max(a, b); }
  static __device__ uint32_t bits(uint32_t word, int) { return word; }
};

template <typename T>
__device__ void maxima_of_tile(const Quad<T>& quad, int64_t left, const Source<T>& x, uint32_t* amax) {
  using M = Maxima<T>;
  __shared__ uint32_t of_warp[kThreads / 32][8 * M::kWords];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
  for (int j = 0; j < M::kWords; ++j) {
    uint32_t most = M::larger(
        M::larger(M::of(quad, 0, j), M::of(quad, 1, j)), M::larger(M::of(quad, 2, j), M::of(quad, 3, j)));
    most = M::larger(most, __shfl_xor_sync(0xffffffffU, most, 8));
    most = M::larger(most, __shfl_xor_sync(0xffffffffU, most, 16));
    if (lane < 8) of_warp[warp][j * 8 + lane] = most;
  }
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i < 8 * M::kWords) {
    uint32_t most = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) most = M::larger(most, of_warp[w][i]);
#pragma unroll
    for (int c = 0; c < M::kColumns; ++c) {
      const int64_t column = left + i % 8 * kValues<T> + i / 8 * M::kColumns + c;
      if (column < x.columns) atomicMax(amax + column, M::bits(most, c));
    }
  }
}

/// The four codes of a thread in a column are a word of the transpose, which leaves in runs of 128 bytes.
template <typename T>
__device__ void codes_of_tile(
    const Quad<T>& quad, int64_t top, int64_t left, const Source<T>& x, const uint32_t* amax, int8_t* codes_t,
    float* scales_t) {
  __shared__ uint32_t tile[kTileColumns<T>][kTileRows / 4 + 1];
  __shared__ float inverses[kTileColumns<T>];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  if (const int i = static_cast<int>(threadIdx.x); i < kTileColumns<T>) {
    const bool inside = left + i < x.columns;
    const Step step = step_of(inside ? __ldcg(amax + left + i) : 0);
    inverses[i] = step.inverse;
    if (inside && top == 0) scales_t[left + i] = step.scale;
  }
  __syncthreads();
  // Columns 32 and more apart would meet in a bank.
  const auto place = [](int column, int index) { return index ^ (column / 32 * 4); };
#pragma unroll
  for (int j = 0; j < kValues<T>; ++j) {
    const int column = Quad<T>::column() + j;
    const float inverse = inverses[column];
    const auto code = [&](int i) { return code_of(quad.value(i, j), inverse); };
    tile[column][place(column, Quad<T>::index())] = pack(code(0), code(1), code(2), code(3), inverse);
  }
  __syncthreads();
  const int64_t row = top + 4 * lane;
  if (row >= x.rows) return;
  const bool whole_words = x.rows % 4 == 0 && reinterpret_cast<uintptr_t>(codes_t) % 4 == 0;
  const int columns = static_cast<int>(min(x.columns - left, static_cast<int64_t>(kTileColumns<T>)));
  int8_t* to = codes_t + (left + warp) * x.rows + row;
  const int64_t stride = kThreads / 32 * x.rows;
#pragma unroll
  for (int i = 0; i < kTileColumns<T> / (kThreads / 32); ++i) {
    const int column = warp + i * (kThreads / 32);
    if (column >= columns) return;
    const uint32_t packed = tile[column][place(column, lane)];
    if (whole_words) {
      __stcs(reinterpret_cast<unsigned*>(to), packed);
    } else {
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        if (row + byte < x.rows) to[byte] = static_cast<int8_t>(packed >> 8 * byte);
      }
    }
    to += stride;
  }
}

/// Neighbouring strips.
struct Strips {
  unsigned first, count;
};

/// The maxima of some strips and the codes of others, by blocks that take turns. amax is zero before the first launch.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) quantize_by_tiles(
    const Source<T> x, unsigned tiles, Strips maxima, Strips codes, uint32_t* __restrict__ amax,
    int8_t* __restrict__ codes_t, float* __restrict__ scales_t) {
  constexpr unsigned kLastBlocks = 1024;  // of which some may be the last to run
  if (blockIdx.x + kLastBlocks >= gridDim.x) let_consumer_start();
  const bool both = maxima.count > 0 && codes.count > 0;
  const bool finds_maxima = both ? blockIdx.x % 2 == 0 : maxima.count > 0;
  const unsigned number = both ? blockIdx.x / 2 : blockIdx.x;
  const Strips strips = finds_maxima ? maxima : codes;
  const unsigned tile = number / strips.count, strip = number - tile * strips.count;
  if (tile >= tiles) return;
  const int64_t top = static_cast<int64_t>(tile) * kTileRows;
  const int64_t left = static_cast<int64_t>(strips.first + strip) * kTileColumns<T>;
  Quad<T> quad;
  if (finds_maxima) {
    quad.template load<kAligned, false>(x, top, left);
    maxima_of_tile(quad, left, x, amax);
  } else {
    quad.template load<kAligned, true>(x, top, left);
    wait_for_producer();
    codes_of_tile(quad, top, left, x, amax, codes_t, scales_t);
  }
}

template <typename T, bool kAligned>
cudaError_t launch_groups(
    const Source<T>& x, uint32_t* amax, int8_t* codes_t, float* scales_t, cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>(ceil_div(x.rows, kTileRows));
  const auto strips = static_cast<unsigned>(ceil_div(x.columns, kTileColumns<T>));
  const auto group = static_cast<unsigned>(std::clamp<int64_t>(kGroupBytes / (x.rows * 128), 1, strips));
  Strips codes{0, 0};
  for (unsigned first = 0; first < strips + group; first += group) {
    const Strips maxima{first, first < strips ? std::min(group, strips - first) : 0};
    const unsigned wider = std::max(maxima.count, codes.count);
    const unsigned blocks = wider * tiles * (maxima.count > 0 && codes.count > 0 ? 2 : 1);
    if (first == 0) {  // x may be what the kernel before writes
      quantize_by_tiles<T, kAligned>
          <<<blocks, kThreads, 0, stream>>>(x, tiles, maxima, codes, amax, codes_t, scales_t);
      if (const auto error = cudaGetLastError(); error != cudaSuccess) return error;
    } else if (const auto error = launch_after_producer<quantize_by_tiles<T, kAligned>>(
                   blocks, kThreads, stream, x, tiles, maxima, codes, amax, codes_t, scales_t);
               error != cudaSuccess) {
      return error;
    }
    codes = maxima;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch(const Source<T>& x, void* workspace, int8_t* codes_t, float* scales_t, cudaStream_t stream) {
  if (x.columns == 0) return cudaSuccess;
  if (x.rows == 0) return cudaMemsetAsync(scales_t, 0, sizeof(float) * static_cast<std::size_t>(x.columns), stream);
  auto* amax = static_cast<uint32_t*>(workspace);
  const auto cleared = cudaMemsetAsync(amax, 0, quantize_columns_workspace(x.columns), stream);
  if (cleared != cudaSuccess) return cleared;
  return with_bool(is_aligned(x.values) && x.columns % kValues<T> == 0, [&](auto aligned) {
    return launch_groups<T, decltype(aligned)::value>(x, amax, codes_t, scales_t, stream);
  });
}

}  // namespace

std::size_t quantize_columns_workspace(int64_t columns) { return sizeof(uint32_t) * static_cast<std::size_t>(columns); }

cudaError_t quantize_columns(
    Type type, const void* x, int64_t rows, int64_t columns, void* workspace, int8_t* codes_t, float* scales_t,
    cudaStream_t stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return launch(Source<T>{static_cast<const T*>(x), rows, columns, nullptr, 0}, workspace, codes_t, scales_t, stream);
  });
}

cudaError_t requantize_columns(
    const int8_t* codes, const float* row_scales, bool one_scale, int64_t rows, int64_t columns, void* workspace,
    int8_t* codes_t, float* scales_t, cudaStream_t stream) {
  return launch(
      Source<int8_t>{codes, rows, columns, row_scales, one_scale ? 0 : 1}, workspace, codes_t, scales_t, stream);
}

}  // namespace te_int8::kernels
