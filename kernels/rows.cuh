// How blocks share the rows of a matrix whose values they hold in registers (piece.cuh).
#pragma once

#include <algorithm>
#include <bit>

#include "launch.h"
#include "piece.cuh"

namespace te_int8::kernels {

constexpr int kMaxRowThreads = 1024;

/// `threads` threads a row, `pieces` pieces a thread. Up to 32 threads (a power of two) are a part of a warp and several
/// rows share a block; more (whole warps) have the block to themselves.
struct RowLayout {
  int pieces = 0;  ///< 1, 2 or 4; 0: such a row does not fit
  int threads = 0, rows_a_block = 0;

  dim3 grid(int64_t rows) const { return static_cast<unsigned>(ceil_div(rows, rows_a_block)); }
  dim3 block() const { return {static_cast<unsigned>(threads), static_cast<unsigned>(rows_a_block)}; }

  /// A block a row, of whole warps.
  static RowLayout of_pieces(int64_t width, int pieces) {
    return {pieces, static_cast<int>(ceil_div(ceil_div(width, kPiece * pieces), 32) * 32), 1};
  }
};

template <typename T, bool kAligned>
RowLayout row_layout(int64_t width) {
  const int64_t pieces = ceil_div(width, kPiece);
  if (pieces <= 32) {
    const auto threads = static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(pieces, 1))));
    return {1, threads, 256 / threads};
  }
  if (kAligned && pieces <= 64) return {2, 32, 8};
  if (pieces <= (kAligned ? 512 : kMaxRowThreads)) return RowLayout::of_pieces(width, 1);
  if (kAligned && pieces <= 2 * kMaxRowThreads) return RowLayout::of_pieces(width, 2);
  if (kAligned && sizeof(T) == 2 && pieces <= 4 * kMaxRowThreads) return RowLayout::of_pieces(width, 4);
  return {};
}

/// The maximum over a block of whole warps.
__device__ inline uint32_t block_max(uint32_t value) {
  __shared__ uint32_t of_warp[kMaxRowThreads / 32];
  value = warp_max(value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  return warp_max(lane < warps ? of_warp[lane] : 0);
}

/// The maximum over the threads of a row, by all threads of the block.
__device__ inline uint32_t amax_of_row(uint32_t amax) {
  const int threads = static_cast<int>(blockDim.x);
  if (threads > 32) return block_max(amax);
  for (int offset = threads / 2; offset > 0; offset /= 2) {
    amax = max(amax, __shfl_xor_sync(0xffffffffU, amax, offset));
  }
  return amax;
}

/// What a warp has of its pieces, in order.
using Turned = uint32_t[32][kPiece + 1];

/// Raises the maxima of a warp's columns, from column `first` on, to what its threads have found (Piece::raise): turned, so that
/// neighbours go to neighbours.
template <typename T, int kWords>
__device__ void raise_columns(
    const uint32_t (&maxima)[kWords], Turned& turned, int64_t first, int64_t columns, uint32_t* column_amax) {
  constexpr int kInWord = kPiece / kWords;
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kPiece; ++i) {
    turned[lane][i] = magnitude(value_of<T>(make_uint4(maxima[i / kInWord], 0, 0, 0), i % kInWord));
  }
  __syncwarp();
  for (int i = lane; i < 32 * kPiece; i += 32) {
    if (first + i < columns) atomicMax(column_amax + first + i, turned[i / kPiece][i % kPiece]);
  }
}

}  // namespace te_int8::kernels
