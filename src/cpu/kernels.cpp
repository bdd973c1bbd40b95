// The kernels of kernels.h, compiled once per instruction set with TE_INT8_ISA as its name:
// avx512_vnni, avx2 and plain. Nothing here may be shared with another translation unit, as a linker
// could then take a version that the processor does not know.
#include <cmath>
#include <cstring>

#include "floats.h"
#include "depthwise.h"
#include "products.h"

#define TE_INT8_STRING_OF(name) #name
#define TE_INT8_STRING(name) TE_INT8_STRING_OF(name)

namespace te_int8::cpu::TE_INT8_ISA {
namespace {

// ---- Quantization -----------------------------------------------------------------------------------

/// Floats without their sign order like integers, infinities and NaNs last: no comparison of floats,
/// which would lose a NaN.
uint32_t amax_bits(const float* x, int64_t k) {
  uint32_t amax = 0;
  int64_t i = 0;
#if defined(__AVX512F__)
  const auto magnitude = _mm512_set1_epi32(static_cast<int32_t>(kMagnitude));
  __m512i most[4] = {};
  for (; i + 64 <= k; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      most[j] = _mm512_max_epu32(most[j], _mm512_and_si512(_mm512_loadu_si512(x + i + 16 * j), magnitude));
    }
  }
  amax = _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3])));
#endif
  for (; i < k; ++i) {
    const uint32_t bits = to_bits(x[i]) & kMagnitude;
    amax = bits > amax ? bits : amax;
  }
  return amax;
}

int8_t code_of(float x, float inverse) {
  float rounded = __builtin_nearbyintf(x * inverse);  // not std::, whose inline function could be shared
  rounded = rounded < -127 ? -127 : rounded;
  rounded = rounded > 127 ? 127 : rounded;
  return static_cast<int8_t>(static_cast<int32_t>(rounded));
}

void codes_of(const float* x, int64_t k, float inverse, int8_t* codes) {
  if (inverse == 0) {  // what is not finite must not reach the conversion
    if (k > 0) std::memset(codes, 0, static_cast<std::size_t>(k));
    return;
  }
  int64_t i = 0;
#if defined(__AVX512F__)
  // Rounding to nearest, |x| inverse is at most 127 (1 + 2^-22), so that no code needs to be clamped.
  const auto factor = _mm512_set1_ps(inverse);
  for (; i + 16 <= k; i += 16) {
    const auto rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(rounded));
  }
#endif
  for (; i < k; ++i) codes[i] = code_of(x[i], inverse);
}

/// The inverse by which values of this amax are multiplied; 0 where there are no codes.
float scale_of(uint32_t amax_bits, float* scale) {
  const float amax = from_bits(amax_bits), inverse = 127.0F / amax;
  const bool finite = amax_bits < kInfinity, representable = to_bits(inverse) < kInfinity;
  *scale = !finite ? NAN : representable ? amax / 127.0F : 0.0F;
  return finite && representable ? inverse : 0.0F;
}

void quantize_row(const float* x, int64_t k, int8_t* codes, float* scale) {
  codes_of(x, k, scale_of(amax_bits(x, k), scale), codes);
}

void dequantize(const int8_t* codes, float scale, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(codes[i]) * scale;
}

void column_amax(const float* x, int64_t count, uint32_t* amax) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = to_bits(x[i]) & kMagnitude;
    amax[i] = magnitude > amax[i] ? magnitude : amax[i];
  }
}

void scales_of(const uint32_t* amax, int64_t count, float* scales, float* inverses) {
  for (int64_t i = 0; i < count; ++i) inverses[i] = scale_of(amax[i], scales + i);
}

/// A column without codes has the inverse 0; what is not finite there must not reach the conversion.
void quantize_by_column(const float* x, const float* inverse, int64_t count, int8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = inverse[i] == 0 ? 0.0F : x[i];
    codes[i] = code_of(value, inverse[i]);
  }
}

// ---- Panels -----------------------------------------------------------------------------------------

void pack(const int8_t* codes, int64_t ld, int64_t columns, int64_t k, uint8_t* panel) {
  const int64_t whole = k / 4 * 4;
  if (columns < kPanel || k % 4 != 0 || k == 0) std::memset(panel, 0, static_cast<std::size_t>(panel_bytes(k)));
  if (k == 0) return;  // a tensor without elements may have no address
  for (int64_t column = 0; column < columns; ++column) {
    const auto* from = codes + column * ld;
    auto* to = panel + kPanelOffsets + column * 4;
    for (int64_t i = 0; i < whole; i += 4) std::memcpy(to + i * kPanel, from + i, 4);
    if (whole < k) std::memcpy(to + whole * kPanel, from + whole, static_cast<std::size_t>(k - whole));
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += from[i];
    const int32_t offset = -128 * sum;
    std::memcpy(panel + column * 4, &offset, 4);
  }
}

void shift(const int8_t* codes, int64_t count, uint8_t* shifted) {
#if defined(__AVX512VNNI__)
  const auto sign = _mm512_set1_epi8(-128);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    _mm512_storeu_si512(shifted + i, _mm512_xor_si512(_mm512_loadu_si512(codes + i), sign));
  }
  const auto rest = _cvtu64_mask64((uint64_t{1} << (count - i)) - 1);
  _mm512_mask_storeu_epi8(shifted + i, rest, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, codes + i), sign));
#else
  for (int64_t i = 0; i < count; ++i) shifted[i] = static_cast<uint8_t>(codes[i] + 128);
#endif
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels{
    TE_INT8_STRING(TE_INT8_ISA), quantize_row, amax_bits, codes_of, convert_to_float, dequantize,
    column_amax, scales_of, quantize_by_column, pack, shift, multiply_by_channel, multiply};

}  // namespace te_int8::cpu::TE_INT8_ISA
