// Codes by column, transposed. See Note [Columns].
#include <algorithm>

#include "column_sums.h"
#include "launch.h"
#include "pdl.cuh"
#include "quantize.h"
#include "rows_and_maxima.h"
#include "tiles.cuh"

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

constexpr int64_t kGroupBytes = 16 << 20;

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

template <typename T>
__device__ void maxima_of_tile(const Quad<T>& quad, int64_t left, const Source<T>& x, uint32_t* amax) {
  using M = Maxima<T>;
  __shared__ uint32_t of_warp[kThreads / 32][8 * M::kWords];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const uint32_t least = M::least(quad);
  uint32_t most[M::kWords];
#pragma unroll
  for (int j = 0; j < M::kWords; ++j) {
    most[j] = M::larger(
        M::larger(M::of(quad, 0, j), M::of(quad, 1, j)), M::larger(M::of(quad, 2, j), M::of(quad, 3, j)));
    asm volatile("" : "+r"(most[j]));  // else it is computed twice, in either branch of what comes next
  }
  const int first = share_out(most, [](uint32_t a, uint32_t b) { return M::larger(a, b); });
#pragma unroll
  for (int j = 0; j < M::kWords / 4; ++j) of_warp[warp][(first + j) * 8 + lane % 8] = M::larger(most[j], least);
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i < 8 * M::kWords) {
    uint32_t of_tile = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) of_tile = M::larger(of_tile, of_warp[w][i]);
#pragma unroll
    for (int c = 0; c < M::kColumns; ++c) {
      const int64_t column = left + i % 8 * kValues<T> + i / 8 * M::kColumns + c;
      if (column < x.columns) atomicMax(amax + column, M::bits(of_tile, c));
    }
  }
}

/// The four codes of a thread in a column are a word of the transpose, which leaves in runs of 128 bytes.
template <typename T>
__device__ void codes_of_tile(
    const Quad<T>& quad, int64_t top, int64_t left, const Source<T>& x, const uint32_t* amax, int8_t* codes_t,
    float* scales_t) {
  __shared__ uint32_t tile[kTileColumns<T>][kTileRows / 4 + 1];
  __shared__ float inverses[kValues<T>][8];  // as threads read them: 8 neighbours, of every kValues-th column
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  if (const int i = static_cast<int>(threadIdx.x); i < kTileColumns<T>) {
    const bool inside = left + i < x.columns;
    const Step step = step_of(inside ? __ldcg(amax + left + i) : 0);
    inverses[i % kValues<T>][i / kValues<T>] = step.inverse;
    if (inside && top == 0) scales_t[left + i] = step.scale;
  }
  __syncthreads();
  // Columns 32 and more apart would meet in a bank.
  const auto place = [](int column, int index) { return index ^ (column / 32 * 4); };
#pragma unroll
  for (int j = 0; j < kValues<T>; ++j) {
    const int column = Quad<T>::column() + j;
    const float inverse = inverses[j][threadIdx.x % 8];
    const auto code = [&](int i) { return code_of(quad.value(i, j), inverse); };
    tile[column][place(column, Quad<T>::index())] = pack(code(0), code(1), code(2), code(3), inverse);
  }
  __syncthreads();
  const int64_t row = top + 4 * lane;
  if (row >= x.rows) return;
  constexpr int kWarps = kThreads / 32;
  int8_t* to = codes_t + (left + warp) * x.rows + row;
  const int64_t stride = kWarps * x.rows;
  const bool whole_words = x.rows % 4 == 0 && reinterpret_cast<uintptr_t>(codes_t) % 4 == 0;
  if (whole_words && left + kTileColumns<T> <= x.columns) {
#pragma unroll
    for (int column = 0; column < kTileColumns<T>; column += kWarps, to += stride) {
      __stcs(reinterpret_cast<unsigned*>(to), tile[column + warp][place(column, lane)]);  // warp does not change the place
    }
    return;
  }
  const int columns = static_cast<int>(min(x.columns - left, static_cast<int64_t>(kTileColumns<T>)));
#pragma unroll 1
  for (int column = warp; column < columns; column += kWarps, to += stride) {
    const uint32_t packed = tile[column][place(column, lane)];
    for (int byte = 0; byte < 4 && row + byte < x.rows; ++byte) to[byte] = static_cast<int8_t>(packed >> 8 * byte);
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

/// The codes of a matrix whose maxima are known. The last tile first: what was read last is still in the L2 cache.
/// Where kSums, also the sums of each tile's columns [tiles, columns].
template <typename T, bool kSums>
__global__ void __launch_bounds__(kThreads) codes_by_tiles(
    const Source<T> x, unsigned strips, const uint32_t* __restrict__ amax, int8_t* __restrict__ codes_t,
    float* __restrict__ scales_t, float* __restrict__ sums) {
  const unsigned number = gridDim.x - 1 - blockIdx.x, tile = number / strips, strip = number - tile * strips;
  const int64_t top = static_cast<int64_t>(tile) * kTileRows, left = static_cast<int64_t>(strip) * kTileColumns<T>;
  Quad<T> quad;
  quad.template load<true, true>(x, top, left);
  if constexpr (kSums) sums_of_tile(quad, left, x.columns, sums + tile * x.columns);
  codes_of_tile(quad, top, left, x, amax, codes_t, scales_t);
}

template <typename T, bool kAligned>
cudaError_t launch_groups(
    const Source<T>& x, uint32_t* amax, int8_t* codes_t, float* scales_t, cudaStream_t stream) {
  const auto [tiles, strips] = Grid(x);
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
                   {blocks, kThreads, 0, stream}, x, tiles, maxima, codes, amax, codes_t, scales_t);
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
    return launch(Source<T>{static_cast<const T*>(x), rows, columns}, workspace, codes_t, scales_t, stream);
  });
}

std::size_t quantize_rows_and_columns_workspace(int64_t rows, int64_t columns, bool with_sums) {
  return quantize_columns_workspace(columns) + (with_sums ? column_sums_workspace(rows, columns) : 0);
}

cudaError_t quantize_columns_with_maxima(
    Type type, const void* values, int64_t rows, int64_t columns, const uint32_t* amax, void* workspace, int8_t* codes_t,
    float* scales_t, float* sums, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return quantize_columns(type, values, rows, columns, nullptr, codes_t, scales_t, stream);
  auto* of_tile = static_cast<float*>(workspace);
  const auto error = with_type(type, [&](auto t) {
    using T = decltype(t);
    const Source<T> x{static_cast<const T*>(values), rows, columns};
    const Grid grid(x);
    return with_bool(sums != nullptr, [&](auto with_sums) {
      codes_by_tiles<T, decltype(with_sums)::value>
          <<<grid.tiles * grid.strips, kThreads, 0, stream>>>(x, grid.strips, amax, codes_t, scales_t, of_tile);
      return cudaGetLastError();
    });
  });
  return error != cudaSuccess || sums == nullptr ? error : add_up_tiles(of_tile, rows, columns, sums, stream);
}

cudaError_t quantize_rows_and_columns(
    Type type, const void* x, int64_t rows, int64_t columns, int sms, void* workspace, int8_t* codes, float* scales,
    int8_t* codes_t, float* scales_t, float* sums, cudaStream_t stream) {
  auto* amax = static_cast<uint32_t*>(workspace);
  void* for_sums = amax + columns;
  if (fits_rows_and_maxima(type, x, rows, columns, codes)) {
    auto error = cudaMemsetAsync(amax, 0, quantize_columns_workspace(columns), stream);
    if (error == cudaSuccess) error = quantize_rows_finding_maxima(type, x, rows, columns, sms, codes, scales, amax, stream);
    return error != cudaSuccess ? error
                                : quantize_columns_with_maxima(
                                      type, x, rows, columns, amax, for_sums, codes_t, scales_t, sums, stream);
  }
  auto error = quantize_rows(type, x, rows, columns, codes, scales, stream);
  if (error == cudaSuccess) error = quantize_columns(type, x, rows, columns, workspace, codes_t, scales_t, stream);
  return error != cudaSuccess || sums == nullptr ? error : column_sums(type, x, rows, columns, for_sums, sums, stream);
}

cudaError_t requantize_columns(
    const int8_t* codes, const float* row_scales, bool one_scale, int64_t rows, int64_t columns, void* workspace,
    int8_t* codes_t, float* scales_t, cudaStream_t stream) {
  return launch(
      Source<int8_t>{codes, rows, columns, row_scales, one_scale ? 0 : 1}, workspace, codes_t, scales_t, stream);
}

}  // namespace te_int8::kernels
