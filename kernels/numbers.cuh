// The number format on the device: see te_int8/number_format.h. Every rounding is named (__fmul_rn), as a
// contraction into a fused multiply-add would change codes.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace te_int8::kernels {

/// |x| as bits, of which the larger is that of more values; infinities and NaN are the largest.
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffU; }

struct Step {
  float scale;
  float inverse;  ///< what values are multiplied by; 0 where all codes are 0
};

__device__ inline Step step_of(uint32_t amax_bits) {
  constexpr uint32_t kInfinity = 0x7f800000U;
  if (amax_bits >= kInfinity) return {__uint_as_float(0x7fc00000U), 0.0F};
  const float amax = __uint_as_float(amax_bits);
  const float inverse = __fdiv_rn(127.0F, amax);
  if (__float_as_uint(inverse) >= kInfinity) return {0.0F, 0.0F};  // a row of zeros, or nearly so
  return {__fdiv_rn(amax, 127.0F), inverse};
}

/// The code of x in the lowest byte. |x * inverse| is at most 127 and a rounding error, so that adding 1.5 * 2^23
/// leaves the integer, rounded to even, in the lowest bits, and nothing is left to clamp. Of no use where inverse
/// is 0 and x not finite: see pack().
__device__ inline uint32_t code_of(float x, float inverse) {
  return __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), 12582912.0F));
}

/// Four codes in a word, the first lowest; zeros where inverse is 0.
__device__ inline uint32_t pack(uint32_t a, uint32_t b, uint32_t c, uint32_t d, float inverse) {
  const uint32_t codes = __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
  return inverse == 0.0F ? 0U : codes;
}

/// The i-th value of 16 bytes that hold values of type T.
template <typename T>
__device__ inline float value_of(const uint4& words, int i);

__device__ inline uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

template <>
__device__ inline float value_of<float>(const uint4& words, int i) {
  return __uint_as_float(word_of(words, i));
}
template <>
__device__ inline float value_of<__nv_bfloat16>(const uint4& words, int i) {
  const uint32_t word = word_of(words, i / 2);
  return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000U);
}
template <>
__device__ inline float value_of<__half>(const uint4& words, int i) {
  const uint32_t word = word_of(words, i / 2);
  return __half2float(__ushort_as_half(static_cast<uint16_t>(i % 2 == 0 ? word : word >> 16)));
}

/// The i-th of 16 codes. int8 has no fast conversion, but a dot product of bytes takes one code and adds the bits of
/// 1.5 * 2^23, on another pipe than what picks bytes and compares, of which kernels that make codes have enough.
__device__ inline float value_of_code(const uint4& words, int i) {
  const int sum = __dp4a(static_cast<int>(word_of(words, i / 4)), 1 << 8 * (i % 4), 0x4b400000);
  return __fadd_rn(__int_as_float(sum), -12582912.0F);
}

/// The magnitudes of 16 codes, as unsigned bytes; that of -128 is 128.
__device__ inline uint4 magnitudes_of_codes(const uint4& words) {
  const auto of = [](uint32_t word) { return __vabsdiffu4(word ^ 0x80808080U, 0x80808080U); };
  return make_uint4(of(words.x), of(words.y), of(words.z), of(words.w));
}

/// 2^23 and the i-th of 16 magnitudes.
__device__ inline float raised_magnitude(const uint4& magnitudes, int i) {
  return __uint_as_float(__dp4a(word_of(magnitudes, i / 4), 1U << 8 * (i % 4), __float_as_uint(0x1p23F)));
}

template <typename T>
__device__ inline float to_float(T x) { return static_cast<float>(x); }
template <>
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <>
__device__ inline float to_float(__half x) { return __half2float(x); }

__device__ inline uint32_t warp_max(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffU, value);
#else
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = max(value, __shfl_xor_sync(0xffffffffU, value, offset));
  }
  return value;
#endif
}

}  // namespace te_int8::kernels
