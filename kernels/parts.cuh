// A part of a matrix in shared memory, from which codes of the transpose are made. See Note [Parts].
#pragma once

#include <cuda_pipeline_primitives.h>

#include "tiles.cuh"

namespace te_int8::kernels {

// Note [Parts]
//
// Four rows of 16 bytes, a quad, give a word of codes for each of their columns. The lanes of a warp take quads of the
// same columns, one below the other, so that words leave in runs of 128 bytes. As the pieces of 16 bytes that they read would
// meet in a bank, those of each 128 bytes are permuted by the number of their quad.

/// __pipeline_memcpy_async of 16 bytes that nobody reads again.
__device__ inline void copy_for_last_use(uint4* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "l"(policy)
               : "memory");
#else
  __pipeline_memcpy_async(to, from, 16);
#endif
}

constexpr int kPiecesOfThread = 4, kPieceBytes = 16, kPartBytes = kPieceBytes * kPiecesOfThread * kThreads;

/// kWidth bytes, 128 or 64, of each row.
template <typename T, int kWidth>
struct Part {
  static constexpr int kPieces = kWidth / kPieceBytes, kOfPiece = kValues<T>, kColumns = kPieces * kOfPiece;
  static constexpr int kRows = kPartBytes / kWidth, kWarpsOfPiece = kThreads / 32 / kPieces;

  /// What this thread makes codes of: the columns of a piece, four rows from quad_row() on.
  static __device__ int piece() { return static_cast<int>(threadIdx.x / 32) % kPieces; }
  static __device__ int quad_row() {
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    return 4 * (warp / kPieces * 32 + lane);
  }
  static __device__ int place(int row, int piece) { return (row * kPieces + piece) ^ (row / 4 % 8); }

  /// Sends for the columns from `left` on of `rows` rows from `top` on; zeros elsewhere. To be committed and waited for. Where
  /// kLastUse, what is read is the first to leave the L2 cache.
  template <bool kAligned, bool kLastUse>
  static __device__ void fetch(const Source<T>& x, int64_t top, int64_t left, int rows, uint4* part) {
    constexpr int kStep = kThreads / kPieces;  // rows, of eight quads or a multiple, so that places are permuted alike
    const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
    const int64_t column = left + piece * kOfPiece, step = kStep * x.columns;
    const T* from = x.values + (top + row) * x.columns + column;
    uint4* to = part + place(row, piece);
#pragma unroll
    for (int i = 0; i < kPiecesOfThread; ++i, from += step, to += kThreads) {
      const bool inside = row + i * kStep < rows && column < x.columns;
      if (kAligned && inside) {
        if constexpr (kLastUse) {
          copy_for_last_use(to, from);
        } else {
          __pipeline_memcpy_async(to, from, 16);
        }
      } else {
        *to = inside ? Source<T>::template load<false, false>(from, x.columns - column) : make_uint4(0, 0, 0, 0);
      }
    }
  }
  /// The words of this thread's quad; of the one that Quad::load gives it, from a tile.
  static __device__ void load(const uint4* part, uint4 (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = part[place(quad_row() + i, piece())];
  }
  static __device__ void load_of_tile(const uint4* part, uint4 (&words)[4]) {
    static_assert(kRows == kTileRows && kColumns == kTileColumns<T>);
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = part[place(4 * Quad<T>::index() + i, Quad<T>::column() / kOfPiece)];
  }
  /// store(word of codes, j) for the j-th column of the piece; `inverses` are those of the part's columns, aligned.
  template <typename Store>
  static __device__ void for_each_word(const Quad<T>& quad, const float* inverses, const Store& store) {
    alignas(16) float four[4];
#pragma unroll
    for (int j = 0; j < kOfPiece; ++j) {
      if (j % 4 == 0) *reinterpret_cast<float4*>(four) = *reinterpret_cast<const float4*>(inverses + piece() * kOfPiece + j);
      const float inverse = four[j % 4];
      const auto code = [&](int i) { return code_of(quad.value(i, j), inverse); };
      store(pack(code(0), code(1), code(2), code(3), inverse), j);
    }
  }
};

/// Stores four bytes of each lane of a warp, of which there are `there`, side by side from the first lane's `to` on, wherever that
/// is: by words but for the ends, each word of the last bytes of one lane and the first of the next.
__device__ inline void store_run(int8_t* to, unsigned word, int there) {
  const int lane = static_cast<int>(threadIdx.x % 32), shift = static_cast<int>(reinterpret_cast<uintptr_t>(to) % 4);
  const int first = 4 - shift;  // bytes of a lane, which end the word that begins in the lane before
  const unsigned before = __shfl_up_sync(0xffffffffU, word, 1);
  const int there_next = __shfl_down_sync(0xffffffffU, there, 1);
  const bool joins = (lane > 0 || shift == 0) && there >= first, next_joins = lane < 31 && there_next >= first;
  if (joins) __stcs(reinterpret_cast<unsigned*>(to - shift), __funnelshift_l(before, word, 8 * shift));
#pragma unroll
  for (int byte = 0; byte < 4; ++byte) {
    if (byte < there && !(byte < first ? joins : next_joins)) to[byte] = static_cast<int8_t>(word >> 8 * byte);
  }
}

}  // namespace te_int8::kernels
