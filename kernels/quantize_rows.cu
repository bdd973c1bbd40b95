// Codes by row, and by tensor.
#include <algorithm>

#include "clusters.cuh"
#include "quantize.h"
#include "rows.cuh"

namespace te_int8::kernels {
namespace {

constexpr int kMostBlocksOfRow = 8;    ///< clusters of so many blocks run on every GPU that has clusters
constexpr int64_t kEnoughBlocks = 256, kLeastSlice = 4096;  ///< rows are shared out to so many blocks, but not into smaller parts

/// Rows in registers, shared out by a RowLayout.
template <typename T, bool kAligned, int kPieces>
__global__ void __launch_bounds__(kMaxRowThreads) rows_on_chip(
    const T* __restrict__ x, int64_t rows, int64_t width, int8_t* __restrict__ codes, float* __restrict__ scales) {
  take_over_from_producer();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const auto begin = [&](int piece) { return static_cast<int64_t>(piece) * threads * kPiece; };
  const auto left = [&](int piece) { return row < rows ? width - begin(piece) : 0; };
  Piece<T, kAligned> pieces[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) pieces[p].load(x + row * width + begin(p), left(p), threads, thread);
  uint32_t amax = 0;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) amax = max(amax, pieces[p].amax());
  const Step step = step_of(amax_of_row(amax));
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    pieces[p].store(codes + row * width + begin(p), left(p), threads, thread, step.inverse);
  }
  if (thread == 0 && row < rows) scales[row] = step.scale;
}

/// Rows in the registers of a cluster of blocks, each of which has `slice` values of its row: for rows too wide for one block, and
/// for so few of them that blocks would be idle. Only on GPUs that have clusters.
template <typename T, bool kAligned, int kPieces>
__global__ void __launch_bounds__(kMaxRowThreads) rows_on_clusters(
    const T* __restrict__ x, int64_t width, int64_t slice, int8_t* __restrict__ codes, float* __restrict__ scales) {
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  cluster.barrier_arrive();  // all have started, so that their shared memory is there
  take_over_from_producer();
  const int64_t row = blockIdx.x / cluster.num_blocks(), first = cluster.block_rank() * slice;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  x += row * width + first;
  codes += row * width + first;
  const auto begin = [&](int piece) { return static_cast<int64_t>(piece) * threads * kPiece; };
  const auto left = [&](int piece) { return min(slice, width - first) - begin(piece); };
  Piece<T, kAligned> pieces[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) pieces[p].load(x + begin(p), left(p), threads, thread);
  uint32_t amax = 0;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) amax = max(amax, pieces[p].amax());
  amax = block_max(amax);
  __shared__ uint32_t of_block[kMostBlocksOfRow];
  cluster.barrier_wait();
  if (threadIdx.x < cluster.num_blocks()) *cluster.map_shared_rank(of_block + cluster.block_rank(), threadIdx.x) = amax;
  cluster.sync();
  for (unsigned i = 0; i < cluster.num_blocks(); ++i) amax = max(amax, of_block[i]);
  const Step step = step_of(amax);
#pragma unroll
  for (int p = 0; p < kPieces; ++p) pieces[p].store(codes + begin(p), left(p), threads, thread, step.inverse);
  if (thread == 0 && first == 0) scales[row] = step.scale;
#endif
}

/// f(where it begins, how many values) for every run of a row that a block takes at once.
template <typename F>
__device__ void for_each_run(int64_t width, int64_t first, int64_t stride, const F& f) {
  const int64_t run = static_cast<int64_t>(blockDim.x) * kPiece;
  for (int64_t begin = first * run; begin < width; begin += stride * run) f(begin, width - begin);
}

/// Rows wider than that: a block a row, which it reads twice.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) rows_in_two_passes(
    const T* __restrict__ x, int64_t width, int8_t* __restrict__ codes, float* __restrict__ scales) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  x += blockIdx.x * width;
  codes += blockIdx.x * width;
  Piece<T, kAligned> piece;
  uint32_t amax = 0;
  for_each_run(width, 0, 1, [&](int64_t begin, int64_t count) {
    piece.load(x + begin, count, threads, thread);
    amax = max(amax, piece.amax());
  });
  const Step step = step_of(block_max(amax));
  for_each_run(width, 0, 1, [&](int64_t begin, int64_t count) {
    piece.load(x + begin, count, threads, thread);
    piece.store(codes + begin, count, threads, thread, step.inverse);
  });
  if (thread == 0) scales[blockIdx.x] = step.scale;
}

/// One scale for all: *amax holds 0 before and the bits of max |x| after.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) amax_of_tensor(
    const T* __restrict__ x, int64_t count, uint32_t* __restrict__ amax) {
  Piece<T, kAligned> piece;
  uint32_t most = 0;
  for_each_run(count, blockIdx.x, gridDim.x, [&](int64_t begin, int64_t left) {
    piece.load(x + begin, left, static_cast<int>(blockDim.x), static_cast<int>(threadIdx.x));
    most = max(most, piece.amax());
  });
  most = block_max(most);
  if (threadIdx.x == 0) atomicMax(amax, most);
}

/// The codes by *amax. The scale is written by scale_of_tensor, as *amax may lie in its place.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) codes_of_tensor(
    const T* __restrict__ x, int64_t count, const uint32_t* __restrict__ amax, int8_t* __restrict__ codes) {
  const Step step = step_of(*amax);
  Piece<T, kAligned> piece;
  for_each_run(count, blockIdx.x, gridDim.x, [&](int64_t begin, int64_t left) {
    piece.load(x + begin, left, static_cast<int>(blockDim.x), static_cast<int>(threadIdx.x));
    piece.store(codes + begin, left, static_cast<int>(blockDim.x), static_cast<int>(threadIdx.x), step.inverse);
  });
}

__global__ void scale_of_tensor(float* amax_then_scale) {
  *amax_then_scale = step_of(__float_as_uint(*amax_then_scale)).scale;
}

template <typename T>
bool aligned_rows(const void* x, int64_t width, const void* codes) {
  return is_aligned(x) && is_aligned(codes) && width % kPiece == 0;
}

/// How many blocks share a row, and what each has of it; 1: a block has it alone.
struct Slices {
  int blocks = 1;
  int64_t width;
};

template <typename T, bool kAligned>
Slices slices_of(int64_t rows, int64_t width) {
  Slices result{.width = width};
  const auto wanted = [&] {
    return row_layout<T, kAligned>(result.width).pieces == 0 ||
           (rows * result.blocks < kEnoughBlocks && result.width >= 2 * kLeastSlice);
  };
  while (result.blocks < kMostBlocksOfRow && wanted()) {
    result.blocks *= 2;
    result.width = ceil_div(ceil_div(width, result.blocks), kPiece) * kPiece;
  }
  return result;
}

/// Calls f(std::integral_constant) with the pieces that a thread has in such a layout; there are some.
template <typename T, bool kAligned, typename F>
cudaError_t with_pieces(const RowLayout& layout, const F& f) {
  if constexpr (kAligned) {
    if (layout.pieces == 2) return f(std::integral_constant<int, 2>());
    if constexpr (sizeof(T) == 2) {
      if (layout.pieces == 4) return f(std::integral_constant<int, 4>());
    }
  }
  return f(std::integral_constant<int, 1>());
}

template <typename T, bool kAligned>
cudaError_t launch_rows(
    const T* x, int64_t rows, int64_t width, int8_t* codes, float* scales, cudaStream_t stream) {
  const auto slices = slices_of<T, kAligned>(rows, width);
  if (slices.blocks > 1 && has_image_of<rows_on_clusters<T, kAligned, 1>, 90>()) {
    // The fewer threads a block has, the more blocks are there at once, some of which load while others store.
    const auto layout = RowLayout::of_pieces(slices.width, kAligned ? 8 / static_cast<int>(sizeof(T)) : 1);
    if (layout.threads <= kMaxRowThreads) {
      return with_pieces<T, kAligned>(layout, [&](auto pieces) {
        return launch_clusters_after_producer<rows_on_clusters<T, kAligned, decltype(pieces)::value>>(
            slices.blocks, {static_cast<unsigned>(rows * slices.blocks), layout.block(), 0, stream}, x, width, slices.width, codes,
            scales);
      });
    }
  }
  const auto layout = row_layout<T, kAligned>(width);
  if (layout.pieces != 0) {
    return with_pieces<T, kAligned>(layout, [&](auto pieces) {
      return launch_after_producer<rows_on_chip<T, kAligned, decltype(pieces)::value>>(
          {layout.grid(rows), layout.block(), 0, stream}, x, rows, width, codes, scales);
    });
  }
  rows_in_two_passes<T, kAligned>
      <<<static_cast<unsigned>(rows), kMaxRowThreads, 0, stream>>>(x, width, codes, scales);
  return cudaGetLastError();
}

}  // namespace

cudaError_t quantize_rows(
    Type type, const void* x, int64_t rows, int64_t width, int8_t* codes, float* scales, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_bool(aligned_rows<T>(x, width, codes), [&](auto aligned) {
      return launch_rows<T, decltype(aligned)::value>(
          static_cast<const T*>(x), rows, width, codes, scales, stream);
    });
  });
}

cudaError_t quantize_tensor(
    Type type, const void* x, int64_t count, int8_t* codes, float* scales, cudaStream_t stream) {
  auto* amax = reinterpret_cast<uint32_t*>(scales);
  if (const auto error = cudaMemsetAsync(amax, 0, sizeof(*amax), stream); error != cudaSuccess) return error;
  if (count == 0) return cudaSuccess;  // and the scale is 0
  constexpr int kThreads = 256;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(count, kThreads * kPiece), 4096));
  const auto error = with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_bool(aligned_rows<T>(x, count, codes), [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      const auto* values = static_cast<const T*>(x);
      amax_of_tensor<T, kAligned><<<blocks, kThreads, 0, stream>>>(values, count, amax);
      codes_of_tensor<T, kAligned><<<blocks, kThreads, 0, stream>>>(values, count, amax, codes);
      return cudaGetLastError();
    });
  });
  if (error != cudaSuccess) return error;
  scale_of_tensor<<<1, 1, 0, stream>>>(scales);
  return cudaGetLastError();
}

}  // namespace te_int8::kernels
