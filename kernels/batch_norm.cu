// factor = weight / sqrt(variance + eps); scale * factor, and (added - mean) * factor + bias, a thread a channel.
#include "batch_norm.h"

#include "epilogue.cuh"
#include "launch.h"

namespace te_int8::kernels {
namespace {

constexpr int kThreads = 128;

__device__ float value_at(const Values& values, int64_t i, float otherwise) {
  return values.data == nullptr ? otherwise : bias_value(values.data, values.type, i);
}

__global__ void __launch_bounds__(kThreads) fold_norm(
    __grid_constant__ const BatchNormOf norm, int64_t channels, float* __restrict__ scales, float* __restrict__ bias) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= channels) return;
  const float root = __fsqrt_rn(value_at(norm.variance, i, 1.0F) + norm.eps);
  const float factor = __fdiv_rn(value_at(norm.weight, i, 1.0F), root);
  scales[i] = norm.scales[i * norm.scale_step] * factor;
  bias[i] = __fmaf_rn(value_at(norm.added, i, 0.0F) - value_at(norm.mean, i, 0.0F), factor, value_at(norm.bias, i, 0.0F));
}

}  // namespace

cudaError_t fold_batch_norm(
    const BatchNormOf& norm, int64_t channels, float* folded_scales, float* folded_bias, cudaStream_t stream) {
  if (channels == 0) return cudaSuccess;
  fold_norm<<<static_cast<unsigned>(ceil_div(channels, kThreads)), kThreads, 0, stream>>>(norm, channels, folded_scales, folded_bias);
  return cudaGetLastError();
}

}  // namespace te_int8::kernels
