// Functions of single values on the device, as LibTorch rounds them.
#pragma once

#include <cmath>
#include <type_traits>

#include "activations.h"
#include "numbers.cuh"

namespace te_int8::kernels {

// What follows rounds step by step as LibTorch's kernels do, so that nobody can tell who has computed.

constexpr float kSqrtTwoByPi = 0.7978845608028654F, kCubic = 0.044715F;  ///< of GELU by tanh

/// sqrt(2 / pi) (x + 0.044715 x^3), of which GELU takes the tanh.
__device__ inline float inner_of_gelu(float x) {
  return __fmul_rn(kSqrtTwoByPi, __fmaf_rn(kCubic, __fmul_rn(__fmul_rn(x, x), x), x));
}

constexpr float kSqrtHalf = 0.7071067811865476F;

/// 1 + erf(x / sqrt(2))
__device__ inline float one_and_erf_of_gelu(float x) { return __fadd_rn(1.0F, erff(__fmul_rn(x, kSqrtHalf))); }

template <Activation kActivation>
__device__ inline float activated(float x) {
  if constexpr (kActivation == Activation::Relu) return x <= 0.0F ? 0.0F : x;  // NaN stays
  if constexpr (kActivation == Activation::Silu) return __fdiv_rn(x, __fadd_rn(1.0F, expf(-x)));
  if constexpr (kActivation == Activation::GeluTanh) {
    const float inner = inner_of_gelu(x);
    return __fmul_rn(__fmul_rn(0.5F, x), __fadd_rn(1.0F, tanhf(inner)));
  }
  return __fmul_rn(__fmul_rn(x, 0.5F), one_and_erf_of_gelu(x));
}

/// The derivative of a GELU.
template <Activation kActivation>
__device__ inline float derivative(float x) {
  if constexpr (kActivation == Activation::GeluTanh) {
    const float t = tanhf(inner_of_gelu(x));
    const float of_inner = __fmul_rn(kSqrtTwoByPi, __fmaf_rn(3.0F * kCubic, __fmul_rn(x, x), 1.0F));
    const float right = __fmul_rn(__fmul_rn(__fmul_rn(0.5F, x), __fmaf_rn(-t, t, 1.0F)), of_inner);
    return __fadd_rn(__fmul_rn(0.5F, __fadd_rn(1.0F, t)), right);
  } else {
    static_assert(kActivation == Activation::Gelu);
    constexpr float kDensity = 1.1283791670955126F * kSqrtHalf * 0.5F;
    const float cdf = __fmul_rn(0.5F, one_and_erf_of_gelu(x));
    const float pdf = __fmul_rn(expf(__fmul_rn(__fmul_rn(-0.5F, x), x)), kDensity);
    return __fadd_rn(cdf, __fmul_rn(x, pdf));
  }
}

/// dy f'(x) of the others; of Relu x may be y.
template <Activation kActivation>
__device__ inline float gradient(float dy, float x) {
  if constexpr (kActivation == Activation::Relu) {
    return x <= 0.0F ? 0.0F : dy;
  } else {
    static_assert(kActivation == Activation::Silu);
    const float sigmoid = __fdiv_rn(1.0F, __fadd_rn(1.0F, expf(-x)));
    return __fmul_rn(__fmul_rn(dy, sigmoid), __fmaf_rn(x, __fsub_rn(1.0F, sigmoid), 1.0F));
  }
}

/// What a function gives for each bf16 of a magnitude from kFirst to kEnd, as bits of a float, and for zeros: there are so few
/// that each block makes a table of them all in shared memory, and then reads what would take it some 40 instructions.
template <typename Entry, uint32_t kFirst, uint32_t kEnd>
class Table {
 public:
  template <typename F>
  __device__ void make(const F& f) {
    const uint32_t thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (uint32_t i = thread; i < kEntries; i += threads) {
      entries_[i] = f(__uint_as_float(i % 2 << 31 | (i < 2 ? 0 : (kZero + i / 2) * kStep)));
    }
    __syncthreads();
  }
  /// For the lower and the higher bf16 of a word, of magnitudes less than kEnd. Below kFirst that of a zero with the sign of x.
  __device__ Entry at_low(uint32_t two) const { return entries_[(places(two) & 0xffffU) - 2 * kZero]; }
  __device__ Entry at_high(uint32_t two) const { return entries_[(places(two) >> 16) - 2 * kZero]; }

 private:
  static constexpr uint32_t kStep = 1U << 16;                                            ///< from a bf16 to the next
  static constexpr uint32_t kZero = kFirst / kStep - 1;                                  ///< the place of zeros
  static constexpr uint32_t kEntries = 2 * (kEnd / kStep - kZero);

  /// Of two bf16 in a word: the magnitude, then the sign in the lowest bit.
  static __device__ uint32_t places(uint32_t two) {
    constexpr uint32_t kBoth = 0x10001U;
    return 2 * __vmaxu2(two & 0x7fff * kBoth, kZero * kBoth) + (two >> 15 & kBoth);
  }

  Entry entries_[kEntries];  ///< of a positive x and its negative by turns
};

/// f of bf16, rounded to it. Of magnitudes that are not in the table it is x / 2, x, or nothing.
template <Activation kActivation>
class ValueTable {
 public:
  __device__ void make() {
    table_.make([](float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(activated<kActivation>(x))); });
  }
  /// Whether it has values whose smallest magnitude but zero is `least`, and whose largest is `most`.
  static __device__ bool has(uint32_t least, uint32_t most) { return least >= kFirst && most < kEnd; }
  /// Of two in a word that the table has.
  __device__ uint32_t of_both(uint32_t two) const {
    return __byte_perm(table_.at_low(two), table_.at_high(two), 0x5410);
  }
  __device__ float operator()(float x) const {
    if (magnitude(x) < kFirst) return __fmul_rn(0.5F, x);
    if (magnitude(x) < kEnd) return __uint_as_float(static_cast<uint32_t>(table_.at_high(__float_as_uint(x))) << 16);
    if (x > 0.0F) return x;
    return x > -INFINITY ? -0.0F : NAN;
  }

 private:
  static constexpr uint32_t kFirst = 0x37800000U;                                                 ///< 2^-16
  static constexpr uint32_t kEnd = kActivation == Activation::Silu ? 0x43000000U : 0x41800000U;  ///< 128 or 16
  Table<uint16_t, kFirst, kEnd> table_;
};

/// The derivative of a GELU of bf16, in fp32. Of smaller magnitudes than those in the table it is that of 0; of larger ones 1
/// or 0, up to where a square, or x, is infinite.
template <Activation kActivation>
class DerivativeTable {
 public:
  static constexpr uint32_t kEnd = 0x41800000U;  ///< 16

  __device__ void make() { table_.make([](float x) { return derivative<kActivation>(x); }); }
  /// Of the lower and the higher of two in a word, whose magnitude is less than kEnd.
  __device__ float of_low(uint32_t two) const { return table_.at_low(two); }
  __device__ float of_high(uint32_t two) const { return table_.at_high(two); }
  __device__ float operator()(float x) const {
    if (magnitude(x) < kEnd) return of_high(__float_as_uint(x));
    if (magnitude(x) >= kInfinite) return NAN;
    return x > 0.0F ? 1.0F : 0.0F;
  }

 private:
  static constexpr uint32_t kInfinite = kActivation == Activation::GeluTanh ? 0x5f800000U : 0x7f800000U;  ///< 2^64
  Table<float, /*kFirst=*/0x32800000U, kEnd> table_;                                                      ///< from 2^-26
};

template <typename T, Activation kActivation>
constexpr bool kLooksUp = std::is_same_v<T, __nv_bfloat16> && kActivation != Activation::Relu;

/// The same, found before what comes next is begun: registers are few.
template <typename Found>
__device__ inline Found one_by_one(Found found) {
  asm volatile("" ::: "memory");
  return found;
}

/// f of each of a thread's values, which are a Piece or a Part.
template <typename T, Activation kActivation, typename Values>
__device__ void activate_values(Values& values, const ValueTable<kActivation>* table) {
  if constexpr (!kLooksUp<T, kActivation>) {
    values.map([](float value, auto...) { return activated<kActivation>(value); });
  } else if (ValueTable<kActivation>::has(values.least_but_zero(), values.amax())) {
    values.map_words([&](uint32_t two, auto...) { return one_by_one(table->of_both(two)); });
  } else {
    values.map([&](float value, auto...) { return one_by_one((*table)(value)); });
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
