// A linear layer of few rows (decoding): all time goes into reading the weights b once, and the codes of x are made while
// the first of them are on their way, as a kernel of their own would cost more than they do. See Note [Few rows].
#include <algorithm>
#include <climits>

#include <cuda_pipeline_primitives.h>

#include "epilogue.cuh"
#include "launch.h"
#include "linear.h"
#include "mma.cuh"
#include "numbers.cuh"
#include "pdl.cuh"

namespace te_int8::kernels {
namespace {

// Note [Few rows]
//
// Every block makes the codes of all of x for itself, in shared memory: a thread holds 16 bytes of each row.
//
// A block takes every gridDim.x-th tile of kColumns weights, and a warp a run of K in it, in steps. A thread copies what
// it will multiply itself into a ring of kAhead places in shared memory, so that no barrier stands between loads and
// products: having multiplied what is in a place, it sends for what comes kAhead steps later, of the next tile if need
// be. The warps' sums meet in shared memory, kBatch tiles between two barriers.

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int kRows = static_cast<int>(kFewRows);
constexpr int kColumns = 8, kBatch = 4;
constexpr int kHalves = 2, kStep = kHalves * kMmaDepth;  ///< 128 bytes of a row at once
constexpr int kAhead = 3, kPlace = kHalves * kThreads;
constexpr int kRingBytes = kAhead * kPlace * 16;
constexpr int kAnnounced = 64 << 10;  ///< bytes of weights that a block sends for before it may read anything

struct Shared {
  uint32_t amax[kRows][kWarps];
  Step steps[kRows];
  /// Of this batch and the next, so that one barrier each is enough; 4 more a row, so that a warp adds to all banks.
  int sums[2][kBatch][kRows][kColumns + 4];
};

template <typename T>
constexpr int kValues = 16 / static_cast<int>(sizeof(T));

/// Bytes from row to row of codes in shared memory: two rows' 64 bytes cover all banks.
__host__ __device__ inline int stride_of(int depth) { return (depth + kStep - 1) / kStep * kStep + kMmaDepth; }

/// A thread's part of x [rows, depth].
template <typename T>
class PartOfRows {
 public:
  __device__ PartOfRows(const T* x, int rows, int depth) : rows_(rows), first_(static_cast<int>(threadIdx.x) * kValues<T>), depth_(depth) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      held_[r] = r < rows_ && first_ < depth_ ? *reinterpret_cast<const uint4*>(x + static_cast<int64_t>(r) * depth + first_)
                                              : make_uint4(0, 0, 0, 0);
    }
  }

  /// The codes of all rows, and their steps. Whoever reads them waits for the block first.
  __device__ void make_codes(Shared& shared, int8_t* codes) const {
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows_) break;
      const uint32_t most = warp_max(amax_of(held_[r]));
      if (lane == 0) shared.amax[r][warp] = most;
    }
    __syncthreads();
    if (warp < rows_) {
      const uint32_t most = warp_max(lane < kWarps ? shared.amax[warp][lane] : 0);
      if (lane == 0) shared.steps[warp] = step_of(most);
    }
    __syncthreads();
    if (first_ >= depth_) return;
    int8_t* to = codes + first_;
#pragma unroll
    for (int r = 0; r < kRows; ++r, to += stride_of(depth_)) {
      if (r >= rows_) break;
      const float inverse = shared.steps[r].inverse;
      const auto code = [&](int i) { return code_of(value_of<T>(held_[r], i), inverse); };
#pragma unroll
      for (int i = 0; i < kValues<T>; i += 4) {
        *reinterpret_cast<uint32_t*>(to + i) = pack(code(i), code(i + 1), code(i + 2), code(i + 3), inverse);
      }
    }
  }

 private:
  /// Where values are short, the maxima of two are found at once.
  static __device__ uint32_t amax_of(const uint4& words) {
    constexpr uint32_t kMagnitude = sizeof(T) == 4 ? 0x7fffffffU : 0x7fff7fffU;
    const auto larger = [](uint32_t a, uint32_t b) { return sizeof(T) == 4 ? max(a, b) : __vmaxu2(a, b); };
    const uint32_t most = larger(
        larger(words.x & kMagnitude, words.y & kMagnitude), larger(words.z & kMagnitude, words.w & kMagnitude));
    const auto value = [&](int i) { return magnitude(value_of<T>(make_uint4(most, 0, 0, 0), i)); };
    return sizeof(T) == 4 ? value(0) : max(value(0), value(1));
  }

  int rows_, first_, depth_;
  uint4 held_[kRows];
};

/// A thread's place in the stream of weights: what it sends for next.
class Weights {
 public:
  __device__ Weights(const Linear& linear, int tiles, int steps)
      : weights_(linear.b), columns_(linear.n), depth_(static_cast<int>(linear.k)), tiles_(tiles), steps_(steps),
        tile_(static_cast<int>(blockIdx.x)) {
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    row_ = lane / 4;
    offset_ = warp * steps * kStep + lane % 4 * 16;
    begin_tile();
  }

  /// Sends for the next step; zeros outside of the matrix.
  __device__ void send_for_next(uint4* place) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const bool inside = half * kMmaDepth < left_;
      __pipeline_memcpy_async(
          place + half * kThreads, inside ? next_ + half * kMmaDepth : weights_, 16, inside ? 0 : 16);
    }
    __pipeline_commit();
    next_ += kStep;
    left_ -= kStep;
    if (++step_ == steps_) {
      tile_ += static_cast<int>(gridDim.x);
      begin_tile();
    }
  }

 private:
  __device__ void begin_tile() {
    const int64_t column = static_cast<int64_t>(tile_) * kColumns + row_;
    next_ = weights_ + column * depth_ + offset_;
    left_ = tile_ < tiles_ && column < columns_ ? depth_ - offset_ : 0;
    step_ = 0;
  }

  const int8_t *weights_, *next_;
  int64_t columns_;
  int depth_, tiles_, steps_, tile_, row_, offset_, left_, step_;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) few_rows(const Linear linear, int tiles) {
  __shared__ Shared shared;
  extern __shared__ __align__(16) int8_t dynamic[];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rows = static_cast<int>(linear.m), depth = static_cast<int>(linear.k);
  const int steps = (depth + kStep * kWarps - 1) / (kStep * kWarps);
  const int first_tile = static_cast<int>(blockIdx.x), next_tile = static_cast<int>(gridDim.x);
  auto* ring = reinterpret_cast<uint4*>(dynamic) + thread;
  int8_t* codes = dynamic + kRingBytes;

  let_consumer_start();
  // While the kernel before may still be running, x comes into the L2 cache, each line of it by one thread of the grid,
  // and the first weights do.
  const auto* x_bytes = static_cast<const int8_t*>(linear.x);
  const int x_line = 128 * (static_cast<int>(blockIdx.x) + next_tile * thread);
  if (x_line < rows * depth * static_cast<int>(sizeof(T))) prefetch_into_l2(x_bytes + x_line);
  for (int tile = first_tile, left = kAnnounced; tile < tiles && left > 0; tile += next_tile) {
    const int64_t begin = static_cast<int64_t>(tile) * kColumns * depth;
    const int bytes = static_cast<int>(min(static_cast<int64_t>(min(left, kColumns * depth)), linear.n * depth - begin));
    for (int i = 128 * thread; i < bytes; i += 128 * kThreads) prefetch_into_l2(linear.b + begin + i);
    left -= bytes;
  }
  for (int i = thread; i < static_cast<int>(sizeof(shared.sums) / sizeof(int)); i += kThreads) {
    (&shared.sums[0][0][0][0])[i] = 0;
  }
  wait_for_producer();

  const PartOfRows<T> x(static_cast<const T*>(linear.x), rows, depth);
  Weights weights(linear, tiles, steps);
#pragma unroll
  for (int i = 0; i < kAhead; ++i) weights.send_for_next(ring + i * kPlace);
  x.make_codes(shared, codes);
  __syncthreads();

  // The rows of an mma are those of x, of which the upper half is enough, its columns weights.
  const int row = lane / 4, run = warp * steps * kStep;
  const int8_t* tokens = codes + min(row, rows - 1) * stride_of(depth) + lane % 4 * 16;
  const int last = stride_of(depth) - kMmaDepth - kStep;  // beyond K weights are zeros, and any codes do
  int place = 0, turn = 0;
  for (int batch = first_tile; batch < tiles; batch += kBatch * next_tile, turn ^= 1) {
    // The output that this thread will write, of kBatch x kRows x kColumns.
    const int of_tile = thread / (kRows * kColumns), token = thread / kColumns % kRows;
    const int64_t column = static_cast<int64_t>(batch + of_tile * next_tile) * kColumns + thread % kColumns;
    const bool writes = of_tile < kBatch && token < rows && column < linear.n;
    const float b_scale = writes ? b_scale_at(linear.epilogue, column) : 0.0F;
    const float bias = writes ? bias_at(linear.epilogue, column) : 0.0F;
#pragma unroll 1
    for (int t = 0; t < kBatch && batch + t * next_tile < tiles; ++t) {
      int partial[kHalves][4] = {};
#pragma unroll 2
      for (int step = 0; step < steps; ++step) {
        __pipeline_wait_prior(kAhead - 1);
        asm volatile("" ::: "memory");  // the wait does not tell the compiler that what is read next depends on it
        const int k = min(run + step * kStep, last);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const uint4 of_x = *reinterpret_cast<const uint4*>(tokens + k + half * kMmaDepth);
          multiply_add(partial[half], of_x, make_uint4(0, 0, 0, 0), ring[place * kPlace + half * kThreads]);
        }
        weights.send_for_next(ring + place * kPlace);
        place = (place + 1) % kAhead;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        atomicAdd(&shared.sums[turn][t][row][lane % 4 * 2 + i], partial[0][i] + partial[1][i]);
      }
    }
    __syncthreads();
    if (of_tile < kBatch) {
      int& sum = shared.sums[turn][of_tile][token][thread % kColumns];
      if (writes) {
        const float value = epilogue_formula(sum, shared.steps[token].scale, b_scale, bias);
        store_result(linear.type, linear.out, token * linear.n + column, value);
      }
      sum = 0;
    }
  }
}

int64_t deepest(Type x) { return int64_t{kThreads} * (x == Type::Float ? kValues<float> : kValues<__half>); }

}  // namespace

bool fits_linear_of_few_rows(const Linear& linear) {
  return linear.m > 0 && linear.m <= kFewRows && linear.n > 0 && linear.n <= INT_MAX && linear.k > 0 &&
         linear.k % 16 == 0 && linear.k <= deepest(linear.x_type) && is_aligned(linear.x) && is_aligned(linear.b) &&
         has_image_of<few_rows<float>, 80>();
}

cudaError_t linear_of_few_rows(const Linear& linear, int sms, cudaStream_t stream) {
  const auto tiles = static_cast<int>(ceil_div(linear.n, kColumns));
  const auto depth = static_cast<int>(linear.k);
  return with_type(linear.x_type, [&](auto t) {
    using T = decltype(t);
    const int most = kRingBytes + kRows * stride_of(static_cast<int>(deepest(linear.x_type)));
    if (const auto error = allow_shared_memory<few_rows<T>>(most); error != cudaSuccess) return error;
    const auto bytes = static_cast<std::size_t>(kRingBytes) + static_cast<std::size_t>(linear.m * stride_of(depth));
    return launch_after_producer<few_rows<T>>(
        {static_cast<unsigned>(std::min(tiles, sms)), kThreads, bytes, stream}, linear, tiles);
  });
}

}  // namespace te_int8::kernels
