// Functions of single values on the device, as LibTorch rounds them.
#pragma once

#include <cmath>
#include <type_traits>

#include "activations.h"
#include "numbers.cuh"

namespace te_int8::kernels {

/// As LibTorch's kernels round it, step by step, so that nobody can tell who has computed.
template <Activation kActivation>
__device__ inline float activated(float x) {
  if constexpr (kActivation == Activation::Relu) return x <= 0.0F ? 0.0F : x;  // NaN stays
  if constexpr (kActivation == Activation::Silu) return __fdiv_rn(x, __fadd_rn(1.0F, expf(-x)));
  if constexpr (kActivation == Activation::GeluTanh) {
    constexpr float kBeta = 0.7978845608028654F, kKappa = 0.044715F;
    const float inner = __fmul_rn(kBeta, __fmaf_rn(kKappa, __fmul_rn(__fmul_rn(x, x), x), x));
    return __fmul_rn(__fmul_rn(0.5F, x), __fadd_rn(1.0F, tanhf(inner)));
  }
  constexpr float kSqrtHalf = 0.7071067811865476F;
  return __fmul_rn(__fmul_rn(x, 0.5F), __fadd_rn(1.0F, erff(__fmul_rn(x, kSqrtHalf))));
}

/// f of bf16, which has so few values of middling magnitude that each block makes a table of them all in shared memory, and
/// then reads what would take it some 40 instructions. Of other magnitudes f is x / 2, x, or nothing, when it is rounded.
template <Activation kActivation>
class Table {
 public:
  static constexpr uint32_t kEnd = kActivation == Activation::Silu ? 0x43000000U : 0x41800000U;  ///< 128 or 16, as bits

  __device__ void make() {
    const uint32_t thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (uint32_t i = thread; i < 2 * kCount; i += threads) {
      const uint32_t negative = i >= kCount ? 1 : 0, bits = kFirst + i - negative * kCount;
      const float y = activated<kActivation>(__uint_as_float(negative << 31 | bits << 16));
      values_[i] = __bfloat16_as_ushort(__float2bfloat16_rn(y));
    }
    __syncthreads();
  }
  /// Of a magnitude less than kEnd.
  __device__ float below_end(float x) const {
    const uint32_t bits = __float_as_uint(x) >> 16, size = bits & 0x7fffU;
    const uint32_t found = values_[(bits >> 15) * kCount + max(size, kFirst) - kFirst];
    return size < kFirst ? __fmul_rn(0.5F, x) : __uint_as_float(found << 16);
  }
  __device__ float operator()(float x) const {
    if (magnitude(x) < kEnd) return below_end(x);
    if (x > 0.0F) return x;
    return x > -INFINITY ? -0.0F : NAN;
  }

 private:
  static constexpr uint32_t kFirst = 0x3a00U;  ///< 2^-11
  static constexpr uint32_t kCount = (kEnd >> 16) - kFirst;
  uint16_t values_[2 * kCount];  ///< of positive x, then of negative ones
};

template <typename T, Activation kActivation>
constexpr bool kLooksUp = std::is_same_v<T, __nv_bfloat16> && kActivation != Activation::Relu;

/// f of each of a thread's values, which are a Piece or a Part.
template <typename T, Activation kActivation, typename Values>
__device__ void activate_values(Values& values, const Table<kActivation>* table) {
  if constexpr (!kLooksUp<T, kActivation>) {
    values.map([](float value, auto...) { return activated<kActivation>(value); });
  } else if (values.amax() < Table<kActivation>::kEnd) {
    values.map([&](float value, auto...) { return table->below_end(value); });
  } else {
    values.map([&](float value, auto...) { return (*table)(value); });
  }
}

template <typename F>
cudaError_t with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::Gelu: return f(std::integral_constant<Activation, Activation::Gelu>());
    case Activation::GeluTanh: return f(std::integral_constant<Activation, Activation::GeluTanh>());
    case Activation::Relu: return f(std::integral_constant<Activation, Activation::Relu>());
    case Activation::Silu: return f(std::integral_constant<Activation, Activation::Silu>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace te_int8::kernels
