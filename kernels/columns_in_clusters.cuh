// Codes by column, transposed, of a matrix that is read once. See Note [Clusters].
#pragma once

#include <type_traits>

#include "clusters.cuh"
#include "launch.h"
#include "parts.cuh"

namespace te_int8::kernels {

// Note [Clusters]
//
// On GPUs that run clusters of 16 blocks, a strip of columns may fit into the shared memory of one. Each block copies its
// rows of the strip, finds their maxima part by part as they come, and writes these to all blocks of the cluster; when all have
// done so, it makes its codes of what it still holds. On Hopper three blocks share a multiprocessor, so that some copy while others
// compute. Codes of codes are bound by instructions, of which this way needs as many as others: it is for values.

constexpr int kMostInCluster = 16, kMostParts = 4;
constexpr int kMostBytes = kMostParts * kPartBytes;  ///< of a block
constexpr int kWide = 128, kNarrow = 64;             ///< strips, in bytes
/// Of a matrix in strips of this width.
constexpr int most_rows(int width) { return kMostInCluster * kMostBytes / width; }

/// Waits for the first `part` + 1 of kMostParts parts that have been sent for, those without rows too.
__device__ inline void wait_for_part(int part) {
  static_assert(kMostParts == 4);
  switch (part) {
    case 0: __pipeline_wait_prior(3); break;
    case 1: __pipeline_wait_prior(2); break;
    case 2: __pipeline_wait_prior(1); break;
    default: __pipeline_wait_prior(0);
  }
}

/// Strips of kWidth bytes, a cluster each, whose blocks have `block_rows` rows each: whole fours, up to kMostParts parts. The last
/// blocks may have fewer, or none. What is read stays in the L2 cache: codes by row are often made next.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 3) columns_in_clusters(
    const Source<T> x, int block_rows, int8_t* __restrict__ codes_t, float* __restrict__ scales_t) {
  static_assert(!std::is_same_v<T, int8_t>, "scales of rows are not read");
#if __CUDA_ARCH__ >= 900
  using P = Part<T, kWidth>;
  using M = Maxima<T>;
  extern __shared__ __align__(128) uint4 pieces[];
  __shared__ uint32_t of_warp[kThreads / 32][P::kOfPiece];
  __shared__ uint32_t of_block[kMostInCluster][P::kColumns];
  __shared__ __align__(16) float inverses[P::kColumns];
  const auto cluster = cooperative_groups::this_cluster();
  cluster.barrier_arrive();  // all have started, so that their shared memory is there
  const int blocks = static_cast<int>(cluster.num_blocks()), rank = static_cast<int>(cluster.block_rank());
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t left = static_cast<int64_t>(blockIdx.x / blocks) * P::kColumns, top = static_cast<int64_t>(rank) * block_rows;
  const int rows = static_cast<int>(max(int64_t{0}, min(static_cast<int64_t>(block_rows), x.rows - top)));
  const int parts = (rows + P::kRows - 1) / P::kRows;
  const auto part_at = [&](int part) { return pieces + part * (kPartBytes / kPieceBytes); };

#pragma unroll 1
  for (int part = 0; part < kMostParts; ++part) {
    const int first = part * P::kRows;
    if (part < parts) P::template fetch<true, false>(x, top + first, left, rows - first, part_at(part));
    __pipeline_commit();
  }
  Quad<T> quad;
  uint32_t most[M::kWords] = {};
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    wait_for_part(part);
    __syncthreads();
    P::load(part_at(part), quad.words);
    M::raise(quad, most);
  }
  uint32_t of_lane = 0;  // that of the column with the lane's number in the piece
#pragma unroll
  for (int j = 0; j < P::kOfPiece; ++j) {
    const uint32_t of_column = warp_max(M::bits(most[j / M::kColumns], j % M::kColumns));
    if (lane == j) of_lane = of_column;
  }
  if (lane < P::kOfPiece) of_warp[warp][lane] = of_lane;
  __syncthreads();

  cluster.barrier_wait();
  {
    const int column = thread % P::kColumns;
    uint32_t of_column = 0;
#pragma unroll
    for (int i = 0; i < P::kWarpsOfPiece; ++i) {
      of_column = max(of_column, of_warp[column / P::kOfPiece + i * P::kPieces][column % P::kOfPiece]);
    }
#pragma unroll 1
    for (int block = thread / P::kColumns; block < blocks; block += kThreads / P::kColumns) {
      *cluster.map_shared_rank(&of_block[rank][column], block) = of_column;
    }
  }
  cluster.sync();
  if (thread < P::kColumns) {
    uint32_t amax = 0;
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) amax = max(amax, of_block[block][thread]);
    const Step step = step_of(amax);
    inverses[thread] = step.inverse;
    if (rank == 0 && left + thread < x.columns) scales_t[left + thread] = step.scale;
  }
  __syncthreads();

  const int64_t column = left + P::piece() * P::kOfPiece, stride = x.rows / 4;
  if (column >= x.columns) return;
#pragma unroll 1
  for (int row = P::quad_row(), part = 0; row < rows; row += P::kRows, ++part) {
    P::load(part_at(part), quad.words);
    auto* to = reinterpret_cast<unsigned*>(codes_t + column * x.rows + top + row);
    P::for_each_word(quad, inverses, [&](unsigned word, int) {
      __stcs(to, word);
      to += stride;
    });
  }
#endif
}

/// How a matrix is divided: `width` bytes a strip, `blocks` in a cluster.
struct Division {
  int width, blocks, block_rows;
};
template <typename T>
Division division_of(const Source<T>& x) {
  constexpr int kEnough = 256;  // blocks that keep a GPU busy
  const int width = x.rows <= most_rows(kWide) ? kWide : kNarrow;
  const int64_t strips = ceil_div(x.columns * static_cast<int64_t>(sizeof(T)), width);
  const auto more = [&](int blocks) {
    return ceil_div(x.rows, blocks) > kMostBytes / width || (strips * blocks < kEnough && x.rows > int64_t{128} * blocks);
  };
  int blocks = 1;
  while (blocks < kMostInCluster && more(blocks)) blocks *= 2;
  return {width, blocks, static_cast<int>(ceil_div(x.rows, int64_t{4} * blocks) * 4)};
}

/// f(std::integral_constant) with the kernel for strips of this width.
template <typename T, typename F>
auto with_columns_in_clusters(int width, const F& f) {
  using Kernel = decltype(&columns_in_clusters<T, kNarrow>);
  return width == kNarrow ? f(std::integral_constant<Kernel, columns_in_clusters<T, kNarrow>>())
                          : f(std::integral_constant<Kernel, columns_in_clusters<T, kWide>>());
}

/// Whether quantize_in_clusters takes this matrix of values, for codes in this place, on the current device.
template <typename T>
bool fits_clusters(const Source<T>& x, const int8_t* codes_t) {
  const bool aligned = is_aligned(x.values) && x.columns % kValues<T> == 0 && x.rows % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(codes_t) % 4 == 0;
  if (!aligned || x.rows > most_rows(kNarrow)) return false;
  return with_columns_in_clusters<T>(division_of(x).width, [](auto kernel) {
    return runs_in_clusters<decltype(kernel)::value, kMostInCluster, kThreads, kMostBytes>();
  });
}

template <typename T>
cudaError_t quantize_in_clusters(const Source<T>& x, int8_t* codes_t, float* scales_t, cudaStream_t stream) {
  const auto division = division_of(x);
  const auto strips = ceil_div(x.columns * static_cast<int64_t>(sizeof(T)), division.width);
  const Launch launch{
      static_cast<unsigned>(strips * division.blocks), kThreads,
      static_cast<std::size_t>(ceil_div(division.block_rows * division.width, kPartBytes) * kPartBytes), stream};
  return with_columns_in_clusters<T>(division.width, [&](auto kernel) {
    return launch_clusters<decltype(kernel)::value>(division.blocks, launch, x, division.block_rows, codes_t, scales_t);
  });
}

}  // namespace te_int8::kernels
