#include "dequantize.h"

#include <algorithm>
#include <type_traits>

#include "epilogue.cuh"
#include "launch.h"

namespace te_int8::kernels {
namespace {

constexpr int kThreads = 256, kColumns = 4;

/// A thread computes kColumns columns of every gridDim.y-th row.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) epilogue_of_sums(
    const int32_t* __restrict__ sums, int64_t ld, int64_t rows, int64_t columns, const Epilogue epilogue,
    T* __restrict__ out) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kColumns;
  if (first >= columns) return;
  float b_scale[kColumns], bias[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int64_t column = min(first + i, columns - 1);
    b_scale[i] = b_scale_at(epilogue, column);
    bias[i] = bias_at(epilogue, column);
  }
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const float a_scale = a_scale_at(epilogue, row);
    const int32_t* from = sums + row * ld + first;
    T* to = out + row * columns + first;
    int32_t sum[kColumns];
    if constexpr (kAligned) {
      const auto words = *reinterpret_cast<const int4*>(from);
      sum[0] = words.x, sum[1] = words.y, sum[2] = words.z, sum[3] = words.w;
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) sum[i] = first + i < columns ? from[i] : 0;
    }
    struct alignas(sizeof(T) * kColumns) { T values[kColumns]; } result;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      result.values[i] = static_cast<T>(epilogue_formula(sum[i], a_scale, b_scale[i], bias[i]));
    }
    if constexpr (kAligned) {
      *reinterpret_cast<decltype(result)*>(to) = result;
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (first + i < columns) to[i] = result.values[i];
      }
    }
  }
}

}  // namespace

bool has_code_for_device() {
  cudaFuncAttributes attributes{};
  const bool has = cudaFuncGetAttributes(&attributes, epilogue_of_sums<float, false>) == cudaSuccess;
  if (!has) cudaGetLastError();  // told by the result
  return has;
}

cudaError_t dequantize(
    const int32_t* sums, int64_t ld, int64_t rows, int64_t columns, const Epilogue& epilogue, Type type,
    void* out, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  const bool aligned =
      is_aligned(sums) && is_aligned(out) && columns % kColumns == 0 && ld % kColumns == 0;
  const dim3 grid(
      static_cast<unsigned>(ceil_div(columns, kThreads * kColumns)),
      static_cast<unsigned>(std::min<int64_t>(rows, 16384)));
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_bool(aligned, [&](auto is_aligned) {
      epilogue_of_sums<T, decltype(is_aligned)::value>
          <<<grid, kThreads, 0, stream>>>(sums, ld, rows, columns, epilogue, static_cast<T*>(out));
      return cudaGetLastError();
    });
  });
}

}  // namespace te_int8::kernels
