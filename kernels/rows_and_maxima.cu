// Codes by row, and on the way the maxima of the columns.
#include "rows_and_maxima.h"

#include "launch.h"
#include "numbers.cuh"
#include "pdl.cuh"
#include "rows.cuh"

namespace te_int8::kernels {
namespace {

constexpr int kRowThreads = 256;

/// Rows in registers, a block a row, the next one on its way, and the maxima of the columns too: column_amax is zero
/// before, and holds the bits of max |x| after.
template <typename T, int kPieces>
__global__ void __launch_bounds__(kRowThreads) rows_and_maxima(
    const T* __restrict__ x, int64_t rows, int64_t width, int8_t* __restrict__ codes, float* __restrict__ scales,
    uint32_t* __restrict__ column_amax) {
  constexpr int kWords = kPiece * static_cast<int>(sizeof(T)) / 4, kWarps = kRowThreads / 32;
  __shared__ uint32_t of_warp[2][kWarps];  // of this row and the next, so that one barrier a row is enough
  __shared__ Turned turned[kWarps];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const auto begin = [&](int piece) { return static_cast<int64_t>(piece) * kRowThreads * kPiece; };
  uint32_t maxima[kPieces][kWords] = {};
  Piece<T, true> pieces[kPieces], next[kPieces];
  const auto load_next = [&](int64_t row) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      next[p].load(x + row * width + begin(p), row < rows ? width - begin(p) : 0, kRowThreads, thread);
    }
  };
  load_next(blockIdx.x);
  let_consumer_start();
  int turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    uint32_t amax = 0;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      pieces[p] = next[p];
      amax = max(amax, pieces[p].amax());
      pieces[p].raise(maxima[p]);
    }
    load_next(row + gridDim.x);
    amax = warp_max(amax);
    if (lane == 0) of_warp[turn][warp] = amax;
    __syncthreads();
    const Step step = step_of(warp_max(lane < kWarps ? of_warp[turn][lane] : 0));
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      pieces[p].template store<true>(codes + row * width + begin(p), width - begin(p), kRowThreads, thread, step.inverse);
    }
    if (thread == 0) scales[row] = step.scale;
  }
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    __syncwarp();
    raise_columns<T>(maxima[p], turned[warp], begin(p) + static_cast<int64_t>(warp) * 32 * kPiece, width, column_amax);
  }
}

}  // namespace

bool fits_rows_and_maxima(Type type, const void* x, int64_t rows, int64_t width, const int8_t* codes) {
  constexpr int64_t kNarrowest = 2048, kFewestBytes = 32 << 20;  // below, a pass for each is as fast or faster
  const int64_t element = type == Type::Float ? 4 : 2;
  return width >= kNarrowest && width * element <= 32 * 1024 && rows * width * element >= kFewestBytes &&
         is_aligned(x) && is_aligned(codes) && width % kPiece == 0;
}

cudaError_t quantize_rows_finding_maxima(
    Type type, const void* x, int64_t rows, int64_t width, int sms, int8_t* codes, float* scales, uint32_t* column_amax,
    cudaStream_t stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&](auto kernel) {
      unsigned blocks = 0;
      const auto error = blocks_at_a_time(kernel, kRowThreads, sms, rows, blocks);
      if (error != cudaSuccess) return error;
      kernel<<<blocks, kRowThreads, 0, stream>>>(
          static_cast<const T*>(x), rows, width, codes, scales, column_amax);
      return cudaGetLastError();
    };
    const int64_t pieces = ceil_div(width, kRowThreads * kPiece);
    if (pieces <= 1) return launch(rows_and_maxima<T, 1>);
    if (pieces <= 2) return launch(rows_and_maxima<T, 2>);
    if constexpr (sizeof(T) == 2) return launch(rows_and_maxima<T, 4>);
    return cudaErrorInvalidValue;
  });
}

}  // namespace te_int8::kernels
