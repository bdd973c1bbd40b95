// Products of few rows (decoding): all time goes into reading the weights b once, so that each block of threads reads
// whole rows of them, and every warp as much at once as registers hold.
#include <algorithm>
#include <type_traits>

#include "epilogue.cuh"
#include "gemm_registry.h"
#include "launch.h"
#include "mma.cuh"
#include "pdl.cuh"

namespace te_int8::kernels {
namespace {

/// 16 codes, zeros where not `inside`. Volatile, so that a thread's loads stay together and before their use.
__device__ uint4 load_codes(const int8_t* codes, bool inside) {
  uint4 words;
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %5, 0;\n"
      "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(codes), "r"(static_cast<int>(inside)));
  return words;
}

/// 16 * kTiles weights by 8 * kGroups rows of a; the warps of a block share K and add up in shared memory.
template <int kTiles, int kGroups, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 1) few_rows(const Product product) {
  constexpr int kColumns = 16 * kTiles, kRows = 8 * kGroups;
  constexpr int kUnroll = kTiles * kGroups <= 2 ? 4 : 2;
  __shared__ int sums[kRows][kColumns];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int row = lane / 4, offset = lane % 4 * 16;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kColumns, top = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t depth = product.k, stride = static_cast<int64_t>(kMmaDepth) * kWarps;

  // While what makes a may still be running, the weights come into the L2 cache.
  for (int64_t k = warp * kMmaDepth + offset; k < min(depth, 4 * stride); k += stride) {
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      if (first + row + 8 * i < product.n) prefetch_into_l2(product.b + (first + row + 8 * i) * depth + k);
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += 32 * kWarps) sums[i / kColumns][i % kColumns] = 0;
  wait_for_producer();
  __syncthreads();

  int partial[kTiles][kGroups][4] = {};
  const int8_t *weights = product.b + (first + row) * depth, *tokens = product.a + (top + row) * depth;
  const int64_t eight_rows = 8 * depth;
  for (int64_t begin = warp * kMmaDepth; begin < depth; begin += stride * kUnroll) {  // alike in all threads of a warp
    uint4 b[kUnroll][2 * kTiles], a[kUnroll][kGroups];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t k = begin + u * stride + offset;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        b[u][i] = load_codes(weights + i * eight_rows + k, k < depth && first + row + 8 * i < product.n);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t k = begin + u * stride + offset;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        a[u][g] = load_codes(tokens + g * eight_rows + k, k < depth && top + row + 8 * g < product.m);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) multiply_add(partial[t][g], b[u][2 * t], b[u][2 * t + 1], a[u][g]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        atomicAdd(&sums[8 * g + lane % 4 * 2 + i % 2][16 * t + row + i / 2 * 8], partial[t][g][i]);
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += 32 * kWarps) {
    const int64_t token = top + i / kColumns, column = first + i % kColumns;
    if (token >= product.m || column >= product.n) continue;
    const float value = epilogue_of(product.epilogue, sums[i / kColumns][i % kColumns], token, column);
    store_result(product.type, product.out, token * product.n + column, value);
  }
}

template <int kTiles, int kGroups, int kWarps>
cudaError_t launch(const Product& product, const Gemm&, int, cudaStream_t stream) {
  const dim3 grid(
      static_cast<unsigned>(ceil_div(product.n, 16 * kTiles)), static_cast<unsigned>(ceil_div(product.m, 8 * kGroups)));
  return launch_after_producer<few_rows<kTiles, kGroups, kWarps>>({grid, 32 * kWarps, 0, stream}, product);
}

template <int kTiles, int kGroups, int kWarps>
void add(const char* name) {
  for (const auto type : {Type::BFloat16, Type::Half, Type::Float}) {
    gemm_registry().push_back(
        {.name = name,
         .oldest = 80,
         .newest = type == Type::Float ? 90 : 89,  // Hopper's own, which have no float, are faster
         .fewest_rows = 8 * (kGroups / 2) + 1,
         .most_rows = 8 * kGroups,
         .type = type,
         .along_m = false,
         .swizzle = 1,
         .launch = launch<kTiles, kGroups, kWarps>});
  }
}

const bool registered = [] {
  add<1, 1, 4>("few rows 16x8, 4 warps");
  add<1, 1, 8>("few rows 16x8, 8 warps");
  add<1, 1, 16>("few rows 16x8, 16 warps");
  add<1, 2, 4>("few rows 16x16, 4 warps");
  add<1, 2, 8>("few rows 16x16, 8 warps");
  add<1, 2, 16>("few rows 16x16, 16 warps");
  add<1, 4, 4>("few rows 16x32, 4 warps");
  add<1, 4, 8>("few rows 16x32, 8 warps");
  add<2, 4, 4>("few rows 32x32, 4 warps");
  add<2, 4, 8>("few rows 32x32, 8 warps");
  add<1, 8, 8>("few rows 16x64, 8 warps");
  add<2, 8, 4>("few rows 32x64, 4 warps");
  add<2, 8, 8>("few rows 32x64, 8 warps");
  return true;
}();

}  // namespace
}  // namespace te_int8::kernels
