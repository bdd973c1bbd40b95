// Codes by column, transposed. See Note [Columns].
#include <algorithm>

#include "column_sums.h"
#include "columns_in_clusters.cuh"
#include "launch.h"
#include "parts.cuh"
#include "pdl.cuh"
#include "quantize.h"
#include "rows_and_maxima.h"
#include "tiles.cuh"

namespace te_int8::kernels {
namespace {

// Note [Columns]
//
// A column's scale is known only when all of it has been read. Where no cluster of blocks holds it meanwhile (Note
// [Clusters]), everything is read twice, the second time from the L2 cache. The matrix is cut into tiles of 128 rows
// by 128 bytes, a column of tiles is a strip, and a group of strips is as much as fits into the cache twice. A launch
// finds the maxima of one group and makes the codes of the group before it; the order of launches is all the
// synchronisation there is. Blocks that find maxima do not wait for the launch before theirs: they read x, which an
// ordinary launch came after, and write to columns of their own, which were cleared before it. Blocks for codes wait once they have
// sent for x.

constexpr int64_t kGroupBytes = 16 << 20;

/// Of kTiles tiles, one below the other.
template <int kTiles, typename T, bool kAligned>
__device__ void maxima_of_tiles(const Source<T>& x, int64_t top, int64_t left, uint32_t* amax) {
  using M = Maxima<T>;
  __shared__ uint32_t of_warp[kThreads / 32][8 * M::kWords];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  uint32_t most[M::kWords] = {};
  Quad<T> quads[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) quads[tile].template load<kAligned, false>(x, top + tile * kTileRows, left);
#pragma unroll
  for (const auto& quad : quads) M::raise(quad, most);
  const int first = share_out(most, [](uint32_t a, uint32_t b) { return M::larger(a, b); });
#pragma unroll
  for (int j = 0; j < M::kWords / 4; ++j) of_warp[warp][(first + j) * 8 + lane % 8] = most[j];
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i < 8 * M::kWords) {
    uint32_t of_tiles = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) of_tiles = M::larger(of_tiles, of_warp[w][i]);
#pragma unroll
    for (int c = 0; c < M::kColumns; ++c) {
      const int64_t column = left + i % 8 * kValues<T> + i / 8 * M::kColumns + c;
      if (column < x.columns) atomicMax(amax + column, M::bits(of_tiles, c));
    }
  }
}

template <typename T>
using Tile = Part<T, 128>;

/// Sends for the tile whose first value is at (top, left), as a group of its own. Where kLastUse, what is read is the first to leave
/// the L2 cache.
template <typename T, bool kAligned, bool kLastUse>
__device__ void fetch_tile(const Source<T>& x, int64_t top, int64_t left, uint4* part) {
  const auto rows = static_cast<int>(min(static_cast<int64_t>(kTileRows), x.rows - top));  // none or less beyond the last
  Tile<T>::template fetch<kAligned, kLastUse>(x, top, left, rows, part);
  __pipeline_commit();
}

/// The codes of kTiles tiles, one below the other, which were sent for last, one after the other.
template <int kTiles, typename T, bool kAligned>
__device__ void codes_of_tiles(
    const uint4* part, int64_t top, int64_t left, const Source<T>& x, const uint32_t* amax, int8_t* codes_t, float* scales_t) {
  static_assert(kTiles <= 2);
  using P = Tile<T>;
  __shared__ __align__(16) float inverses[P::kColumns];
  if (const int i = static_cast<int>(threadIdx.x); i < P::kColumns) {
    const bool inside = left + i < x.columns;
    const Step step = step_of(inside ? __ldcg(amax + left + i) : 0);
    inverses[i] = step.inverse;
    if (inside && top == 0) scales_t[left + i] = step.scale;
  }
  const int64_t column = left + P::piece() * P::kOfPiece;
  const auto outside = [&](int j) { return !kAligned && column + j >= x.columns; };
  const bool by_words = x.rows % 4 == 0 && reinterpret_cast<uintptr_t>(codes_t) % 4 == 0;
#pragma unroll 1
  for (int tile = 0; tile < kTiles; ++tile, top += kTileRows, part += kPartBytes / kPieceBytes) {
    if (tile + 1 < kTiles) {
      __pipeline_wait_prior(1);
    } else {
      __pipeline_wait_prior(0);
    }
    __syncthreads();
    const int64_t row = top + P::quad_row();
    if (column >= x.columns) continue;  // all of a warp
    Quad<T> quad;
    P::load(part, quad.words);
    quad.load_scales(x, row);
    int8_t* to = codes_t + column * x.rows + row;
    if (by_words) {
      if (row >= x.rows) continue;
      P::for_each_word(quad, inverses, [&](unsigned word, int j) {
        if (outside(j)) return;
        __stcs(reinterpret_cast<unsigned*>(to), word);
        to += x.rows;
      });
      continue;
    }
    const auto there = static_cast<int>(max(int64_t{0}, min(int64_t{4}, x.rows - row)));
    P::for_each_word(quad, inverses, [&](unsigned word, int j) {
      if (outside(j)) return;
      store_run(to, word, there);
      to += x.rows;
    });
  }
}

/// Neighbouring strips.
struct Strips {
  unsigned first, count;
};

/// The maxima of some strips and the codes of others, by blocks of kTiles tiles that take turns: strip_blocks for each strip. amax is
/// zero before the first launch.
template <typename T, bool kAligned, int kTiles>
__global__ void __launch_bounds__(kThreads, 4) quantize_by_tiles(
    const Source<T> x, unsigned strip_blocks, Strips maxima, Strips codes, uint32_t* __restrict__ amax,
    int8_t* __restrict__ codes_t, float* __restrict__ scales_t) {
  constexpr unsigned kLastBlocks = 1024;  // of which some may be the last to run
  __shared__ __align__(128) uint4 part[kTiles][kPartBytes / kPieceBytes];
  if (blockIdx.x + kLastBlocks >= gridDim.x) let_consumer_start();
  const bool both = maxima.count > 0 && codes.count > 0, finds_maxima = both ? blockIdx.x % 2 == 0 : maxima.count > 0;
  const unsigned number = both ? blockIdx.x / 2 : blockIdx.x;
  const Strips strips = finds_maxima ? maxima : codes;
  const unsigned block = number / strips.count, strip = number - block * strips.count;
  if (block >= strip_blocks) return;
  const int64_t top = static_cast<int64_t>(block) * kTiles * kTileRows;
  const int64_t left = static_cast<int64_t>(strips.first + strip) * kTileColumns<T>;
  if (finds_maxima) {
    maxima_of_tiles<kTiles, T, kAligned>(x, top, left, amax);
  } else {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      fetch_tile<T, kAligned, true>(x, top + tile * kTileRows, left, part[tile]);
    }
    wait_for_producer();
    codes_of_tiles<kTiles, T, kAligned>(part[0], top, left, x, amax, codes_t, scales_t);
  }
}

/// The codes of a matrix whose maxima the kernel before finds. The last tile first: what was read last is still in the L2 cache.
/// Where kSums, also the sums of each tile's columns [tiles, columns].
template <typename T, bool kSums>
__global__ void __launch_bounds__(kThreads) codes_by_tiles(
    const Source<T> x, unsigned strips, const uint32_t* __restrict__ amax, int8_t* __restrict__ codes_t,
    float* __restrict__ scales_t, float* __restrict__ sums) {
  __shared__ __align__(128) uint4 part[kPartBytes / kPieceBytes];
  const unsigned number = gridDim.x - 1 - blockIdx.x, tile = number / strips, strip = number - tile * strips;
  const int64_t top = static_cast<int64_t>(tile) * kTileRows, left = static_cast<int64_t>(strip) * kTileColumns<T>;
  wait_for_producer();
  fetch_tile<T, true, false>(x, top, left, part);
  if constexpr (kSums) {
    __pipeline_wait_prior(0);
    __syncthreads();
    Quad<T> quad;
    Tile<T>::load_of_tile(part, quad.words);
    sums_of_tile(quad, left, x.columns, sums + tile * x.columns);
  }
  codes_of_tiles<1, T, true>(part, top, left, x, amax, codes_t, scales_t);
}

/// Whether blocks take two tiles each, which costs fewer instructions a code: of a matrix large enough that few blocks are enough,
/// whose codes are stored by words, on a GPU with shared memory for as many blocks as there are registers for.
template <typename T>
bool by_pairs_of_tiles(const Source<T>& x) {
  constexpr unsigned kMany = 768;
  constexpr int kAtOnce = 4;
  static PerDevice known;
  const auto [tiles, strips] = Grid(x);
  return tiles * strips >= kMany && x.rows % 4 == 0 && known([] {
    int on_each = 0;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(&on_each, quantize_by_tiles<T, true, 2>, kThreads, 0) == cudaSuccess &&
           on_each >= kAtOnce;
  });
}

template <typename T, bool kAligned, int kTiles>
cudaError_t launch_groups(
    const Source<T>& x, uint32_t* amax, int8_t* codes_t, float* scales_t, cudaStream_t stream) {
  const auto [tiles, strips] = Grid(x);
  const unsigned strip_blocks = (tiles + kTiles - 1) / kTiles;
  const auto group = static_cast<unsigned>(std::clamp<int64_t>(kGroupBytes / (x.rows * 128), 1, strips));
  Strips codes{0, 0};
  for (unsigned first = 0; first < strips + group; first += group) {
    const Strips maxima{first, first < strips ? std::min(group, strips - first) : 0};
    const bool both = maxima.count > 0 && codes.count > 0;
    const unsigned blocks = std::max(maxima.count, codes.count) * strip_blocks * (both ? 2 : 1);
    if (first == 0) {  // x may be what the kernel before writes
      quantize_by_tiles<T, kAligned, kTiles>
          <<<blocks, kThreads, 0, stream>>>(x, strip_blocks, maxima, codes, amax, codes_t, scales_t);
      if (const auto error = cudaGetLastError(); error != cudaSuccess) return error;
    } else if (const auto error = launch_after_producer<quantize_by_tiles<T, kAligned, kTiles>>(
                   {blocks, kThreads, 0, stream}, x, strip_blocks, maxima, codes, amax, codes_t, scales_t);
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
  if constexpr (!std::is_same_v<T, int8_t>) {
    if (fits_clusters(x, codes_t)) return quantize_in_clusters(x, codes_t, scales_t, stream);
  }
  auto* amax = static_cast<uint32_t*>(workspace);
  const auto cleared = cudaMemsetAsync(amax, 0, quantize_columns_workspace(x.columns), stream);
  if (cleared != cudaSuccess) return cleared;
  if (!is_aligned(x.values) || x.columns % kValues<T> != 0) return launch_groups<T, false, 1>(x, amax, codes_t, scales_t, stream);
  if (by_pairs_of_tiles(x)) return launch_groups<T, true, 2>(x, amax, codes_t, scales_t, stream);
  return launch_groups<T, true, 1>(x, amax, codes_t, scales_t, stream);
}

/// Whether codes by row and by column come sooner by a pass each, of which clusters make the second, than by a first pass that
/// finds the maxima of columns too (rows_and_maxima.h). On an H200 they do below this size, by 9 to 17 %.
bool sooner_by_a_pass_each(Type type, const void* values, int64_t rows, int64_t columns, const int8_t* codes_t) {
  constexpr int64_t kLarge = 64 << 20;  // bytes
  const auto sooner = [&](auto t) {
    using T = decltype(t);
    const Source<T> x{static_cast<const T*>(values), rows, columns};
    return rows * columns * static_cast<int64_t>(sizeof(T)) < kLarge && fits_clusters(x, codes_t);
  };
  return with_type(type, sooner, false);
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
      return launch_after_producer<codes_by_tiles<T, decltype(with_sums)::value>>(
          {grid.tiles * grid.strips, kThreads, 0, stream}, x, grid.strips, amax, codes_t, scales_t, of_tile);
    });
  });
  return error != cudaSuccess || sums == nullptr ? error : add_up_tiles(of_tile, rows, columns, sums, stream);
}

cudaError_t quantize_rows_and_columns(
    Type type, const void* x, int64_t rows, int64_t columns, int sms, void* workspace, int8_t* codes, float* scales,
    int8_t* codes_t, float* scales_t, float* sums, cudaStream_t stream) {
  auto* amax = static_cast<uint32_t*>(workspace);
  void* for_sums = amax + columns;
  if (fits_rows_and_maxima(type, x, rows, columns, codes) &&
      (sums != nullptr || !sooner_by_a_pass_each(type, x, rows, columns, codes_t))) {
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
