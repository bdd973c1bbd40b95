// A part of kernels.cpp: floats, their bits, and their conversions from and to the other types.
#pragma once

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace te_int8::cpu::TE_INT8_ISA {
namespace {

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | kInfinity | (magnitude & 0x3ff) << 13);
  // Scaled by 2^112, which is exact also where the half is subnormal.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * from_bits(0x77800000)));
}

[[maybe_unused]] uint16_t float_to_half(float value) {
  const uint32_t bits = to_bits(value), magnitude = bits & kMagnitude;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > kInfinity) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (magnitude < 0x38800000) {  // subnormal: the addition rounds at the half's last place
    const float shifted = from_bits(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (to_bits(shifted) - to_bits(0.5F)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

[[maybe_unused]] uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & kMagnitude) > kInfinity) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void convert_to_float(Type type, const void* x, int64_t count, float* out) {
  switch (type) {
    case Type::Float: std::memcpy(out, x, static_cast<std::size_t>(count) * sizeof(float)); break;
    case Type::Double:
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(static_cast<const double*>(x)[i]);
      break;
    case Type::BFloat16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = from_bits(static_cast<uint32_t>(static_cast<const uint16_t*>(x)[i]) << 16);
      }
      break;
    case Type::Half: {
      const auto* half = static_cast<const uint16_t*>(x);
      int64_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= count; i += 8) {
        const auto halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
      }
#endif
      for (; i < count; ++i) out[i] = half_to_float(half[i]);
      break;
    }
    case Type::Int32: break;
  }
}

}  // namespace
}  // namespace te_int8::cpu::TE_INT8_ISA
