// Sums of columns, in an order that is always the same: of a part's rows, of a tile's parts, then of the tiles.
#include "column_sums.h"
#include "quantize.h"
#include "tiles.cuh"

namespace te_int8::kernels {
namespace {

/// The sums of each tile's columns [tiles, columns].
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) sums_by_tiles(const Source<T> x, unsigned strips, float* __restrict__ sums) {
  const unsigned tile = blockIdx.x / strips, strip = blockIdx.x - tile * strips;
  const int64_t top = static_cast<int64_t>(tile) * kTileRows, left = static_cast<int64_t>(strip) * kTileColumns<T>;
  Quad<T> quad;
  quad.template load<kAligned, true>(x, top, left);
  sums_of_tile(quad, left, x.columns, sums + tile * x.columns);
}

/// The sums of tiles that come in kParts parts each. A block takes 32 columns.
template <int kParts>
__global__ void __launch_bounds__(kThreads) sums_of_tiles(
    const float* __restrict__ of_part, int64_t parts, int64_t columns, float* __restrict__ sums) {
  constexpr int kGroups = kThreads / 32;
  __shared__ float of_group[kGroups][32];
  const int lane = static_cast<int>(threadIdx.x % 32), group = static_cast<int>(threadIdx.x / 32);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll (kParts == 1 ? 4 : 2)
    for (int64_t first = group * kParts; first < parts; first += kGroups * kParts) {
      float found[kParts];  // on their way together
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        found[part] = first + part < parts ? of_part[(first + part) * columns + column] : 0.0F;
      }
      float of_tile = 0;
#pragma unroll
      for (int part = 0; part < kParts; ++part) of_tile += found[part];
      sum += of_tile;
    }
  }
  of_group[group][lane] = sum;
  __syncthreads();
  if (group > 0 || column >= columns) return;
#pragma unroll
  for (int g = 1; g < kGroups; ++g) sum += of_group[g][lane];
  sums[column] = sum;
}

template <int kParts>
cudaError_t add_up(const float* of_part, int64_t rows, int64_t columns, float* sums, cudaStream_t stream) {
  if (columns == 0) return cudaSuccess;
  sums_of_tiles<kParts><<<static_cast<unsigned>(ceil_div(columns, 32)), kThreads, 0, stream>>>(
      of_part, ceil_div(rows, kTileRows / kParts), columns, sums);
  return cudaGetLastError();
}

}  // namespace

cudaError_t add_up_tiles(const float* of_tile, int64_t rows, int64_t columns, float* sums, cudaStream_t stream) {
  return add_up<1>(of_tile, rows, columns, sums, stream);
}

cudaError_t add_up_parts(const float* of_part, int64_t rows, int64_t columns, float* sums, cudaStream_t stream) {
  return add_up<kTileRows / kSummedRows>(of_part, rows, columns, sums, stream);
}

std::size_t column_sums_workspace(int64_t rows, int64_t columns) {
  return static_cast<std::size_t>(ceil_div(rows, kTileRows) * columns) * sizeof(float);
}

cudaError_t column_sums(
    Type type, const void* values, int64_t rows, int64_t columns, void* workspace, float* sums, cudaStream_t stream) {
  auto* of_tile = static_cast<float*>(workspace);
  const auto error = with_type(type, [&](auto t) {
    using T = decltype(t);
    const Source<T> x{static_cast<const T*>(values), rows, columns};
    const Grid grid(x);
    if (grid.tiles * grid.strips == 0) return cudaSuccess;
    return with_bool(is_aligned(values) && columns % kValues<T> == 0, [&](auto aligned) {
      sums_by_tiles<T, decltype(aligned)::value>
          <<<grid.tiles * grid.strips, kThreads, 0, stream>>>(x, grid.strips, of_tile);
      return cudaGetLastError();
    });
  });
  return error != cudaSuccess ? error : add_up_tiles(of_tile, rows, columns, sums, stream);
}

}  // namespace te_int8::kernels
