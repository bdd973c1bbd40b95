// The kernels of kernels.h, compiled once per instruction set with TE_INT8_ISA as its name:
// avx512_vnni, avx2 and plain. Nothing here may be shared with another translation unit, as a linker
// could then take a version that the processor does not know.
//
// Sums: AVX-512 VNNI multiplies bytes in fours (vpdpbusd, which does not saturate). AVX2 has only
// vpmaddubsw, whose 16-bit sums saturate, so bytes are widened and multiplied in pairs (vpmaddwd).
#include "kernels.h"

#include <cmath>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define TE_INT8_STRING_OF(name) #name
#define TE_INT8_STRING(name) TE_INT8_STRING_OF(name)

namespace te_int8::cpu::TE_INT8_ISA {
namespace {

// ---- Floats -----------------------------------------------------------------------------------------

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

uint16_t float_to_half(float value) {
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

uint16_t float_to_bfloat16(float value) {
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

// ---- Quantization -----------------------------------------------------------------------------------

/// Floats without their sign order like integers, infinities and NaNs last: no comparison of floats,
/// which would lose a NaN.
uint32_t amax_bits(const float* x, int64_t k) {
  uint32_t amax = 0;
  for (int64_t i = 0; i < k; ++i) {
    const uint32_t magnitude = to_bits(x[i]) & kMagnitude;
    amax = magnitude > amax ? magnitude : amax;
  }
  return amax;
}

int8_t code_of(float x, float inverse) {
  float rounded = __builtin_nearbyintf(x * inverse);  // not std::, whose inline function could be shared
  rounded = rounded < -127 ? -127 : rounded;
  rounded = rounded > 127 ? 127 : rounded;
  return static_cast<int8_t>(static_cast<int32_t>(rounded));
}

/// The inverse by which values of this amax are multiplied; 0 where there are no codes.
float scale_of(uint32_t amax_bits, float* scale) {
  const float amax = from_bits(amax_bits), inverse = 127.0F / amax;
  const bool finite = amax_bits < kInfinity, representable = to_bits(inverse) < kInfinity;
  *scale = !finite ? NAN : representable ? amax / 127.0F : 0.0F;
  return finite && representable ? inverse : 0.0F;
}

void quantize_row(const float* x, int64_t k, int8_t* codes, float* scale) {
  const float inverse = scale_of(amax_bits(x, k), scale);
  if (inverse == 0) {
    for (int64_t i = 0; i < k; ++i) codes[i] = 0;
    return;
  }
  for (int64_t i = 0; i < k; ++i) codes[i] = code_of(x[i], inverse);
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

void column_scales(const uint32_t* amax, int64_t count, float* scales, float* inverses) {
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
  const int64_t whole = k / 4, depth = padded_depth(k);
  if (k == 0) return;  // a tensor without elements may have no address
  if (columns < kPanel || depth != k) std::memset(panel, 128, static_cast<std::size_t>(panel_bytes(k)));
  for (int64_t column = 0; column < columns; ++column) {
    const auto* from = codes + column * ld;
    auto* to = panel + column * 4;
    for (int64_t i = 0; i < whole; ++i) {
      uint32_t four;
      std::memcpy(&four, from + 4 * i, 4);
      four ^= 0x80808080U;
      std::memcpy(to + i * kPanel * 4, &four, 4);
    }
    for (int64_t i = 4 * whole; i < k; ++i) {
      to[whole * kPanel * 4 + i - 4 * whole] = static_cast<uint8_t>(from[i] + 128);
    }
  }
}

int32_t row_sum(const int8_t* codes, int64_t depth) {
#if defined(__AVX512VNNI__)
  auto sums = _mm512_setzero_si512();
  const auto ones = _mm512_set1_epi8(1);
  int64_t i = 0;
  for (; i + 64 <= depth; i += 64) {
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(codes + i));
  }
  const auto rest = _cvtu64_mask64((uint64_t{1} << (depth - i)) - 1);
  sums = _mm512_dpbusd_epi32(sums, ones, _mm512_maskz_loadu_epi8(rest, codes + i));
  return _mm512_reduce_add_epi32(sums);
#else
  int32_t sum = 0;
  for (int64_t i = 0; i < depth; ++i) sum += codes[i];
  return sum;
#endif
}

// ---- Products ---------------------------------------------------------------------------------------

float scaled(int32_t sum, const Epilogue& e, int64_t row, int64_t column) {
  float value = static_cast<float>(sum);
  if (e.x_scales != nullptr) value *= e.x_scales[row * e.x_step];
  if (e.w_scales != nullptr) value *= e.w_scales[column];
  if (e.bias != nullptr) value += e.bias[column];
  return value;
}

/// Stores one row of sums.
[[maybe_unused]] void store(const int32_t* sums, int64_t row, int64_t columns, const Epilogue& e) {
  const auto at = [&](auto* out) { return out + row * e.ld; };
  switch (e.type) {
    case Type::Int32:
      std::memcpy(at(static_cast<int32_t*>(e.out)), sums, static_cast<std::size_t>(columns) * 4);
      break;
    case Type::Float:
      for (int64_t c = 0; c < columns; ++c) at(static_cast<float*>(e.out))[c] = scaled(sums[c], e, row, c);
      break;
    case Type::Double:
      for (int64_t c = 0; c < columns; ++c) at(static_cast<double*>(e.out))[c] = static_cast<double>(scaled(sums[c], e, row, c));
      break;
    case Type::Half:
      for (int64_t c = 0; c < columns; ++c) at(static_cast<uint16_t*>(e.out))[c] = float_to_half(scaled(sums[c], e, row, c));
      break;
    case Type::BFloat16:
      for (int64_t c = 0; c < columns; ++c) at(static_cast<uint16_t*>(e.out))[c] = float_to_bfloat16(scaled(sums[c], e, row, c));
      break;
  }
}

#if defined(__AVX512VNNI__)

/// NaN to 0x7fc0, else to nearest even, as c10::BFloat16 does.
__m256i to_bfloat16(__m512 value) {
  const auto bits = _mm512_castps_si512(value);
  const auto odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  auto rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const auto nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/// 16 sums of a row, those of `mask`.
void store_16(__m512i sums, int64_t row, int64_t column, __mmask16 mask, const Epilogue& e) {
  const int64_t at = row * e.ld + column;
  if (e.type == Type::Int32) {
    _mm512_mask_storeu_epi32(static_cast<int32_t*>(e.out) + at, mask, sums);
    return;
  }
  auto value = _mm512_cvtepi32_ps(sums);
  if (e.x_scales != nullptr) value = _mm512_mul_ps(value, _mm512_set1_ps(e.x_scales[row * e.x_step]));
  if (e.w_scales != nullptr) value = _mm512_mul_ps(value, _mm512_loadu_ps(e.w_scales + column));
  if (e.bias != nullptr) value = _mm512_add_ps(value, _mm512_loadu_ps(e.bias + column));
  switch (e.type) {
    case Type::Float: _mm512_mask_storeu_ps(static_cast<float*>(e.out) + at, mask, value); break;
    case Type::BFloat16:
      _mm256_mask_storeu_epi16(static_cast<uint16_t*>(e.out) + at, mask, to_bfloat16(value));
      break;
    case Type::Half:
      _mm256_mask_storeu_epi16(
          static_cast<uint16_t*>(e.out) + at, mask,
          _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      break;
    case Type::Double: {
      auto* out = static_cast<double*>(e.out) + at;
      _mm512_mask_storeu_pd(out, static_cast<__mmask8>(mask), _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
      _mm512_mask_storeu_pd(
          out + 8, static_cast<__mmask8>(mask >> 8), _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
      break;
    }
    case Type::Int32: break;
  }
}

template <int rows>
void multiply_rows(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, const uint8_t* panel, int64_t depth,
    int64_t columns, const Epilogue& e) {
  __m512i sums[rows][2];
  for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += 4, panel += 4 * kPanel) {
    const auto left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      int32_t four;
      std::memcpy(&four, x + r * x_ld + k, 4);
      const auto codes = _mm512_set1_epi32(four);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], left, codes);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], right, codes);
    }
  }
  const auto mask = static_cast<uint32_t>((uint64_t{1} << columns) - 1);
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    const auto excess = _mm512_set1_epi32(static_cast<int32_t>(128U * static_cast<uint32_t>(x_sums[r])));
    store_16(_mm512_sub_epi32(sums[r][0], excess), r, 0, static_cast<__mmask16>(mask), e);
    store_16(_mm512_sub_epi32(sums[r][1], excess), r, 16, static_cast<__mmask16>(mask >> 16), e);
  }
}

#elif defined(__AVX2__)

template <int rows>
void multiply_rows(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, const uint8_t* panel, int64_t depth,
    int64_t columns, const Epilogue& e) {
  alignas(32) int32_t stored[rows][kPanel];
  // Eight channels at a time: of each, the sums of the even and of the odd pairs of codes.
  for (int64_t first = 0; first < columns; first += 8) {
    __m256i sums[rows][2];
    for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < depth; k += 4) {
      const auto* four_of_eight = panel + k * kPanel + first * 4;
      const auto left = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four_of_eight)));
      const auto right = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four_of_eight + 16)));
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        int32_t four;
        std::memcpy(&four, x + r * x_ld + k, 4);
        const auto codes = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
        sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(left, codes));
        sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(right, codes));
      }
    }
    for (int r = 0; r < rows; ++r) {
      // hadd works within 128-bit halves: channels 0 1 4 5 2 3 6 7.
      const auto pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[r][0], sums[r][1]), 0b11011000);
      const auto excess = _mm256_set1_epi32(static_cast<int32_t>(128U * static_cast<uint32_t>(x_sums[r])));
      _mm256_store_si256(reinterpret_cast<__m256i*>(stored[r] + first), _mm256_sub_epi32(pairs, excess));
    }
  }
  for (int r = 0; r < rows; ++r) store(stored[r], r, columns, e);
}

#else

template <int rows>
void multiply_rows(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, const uint8_t* panel, int64_t depth,
    int64_t columns, const Epilogue& e) {
  uint32_t sums[rows][kPanel] = {};  // unsigned: the sums with 128 in them may wrap
  for (int64_t k = 0; k < depth; k += 4) {
    for (int r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < kPanel; ++c) {
        int32_t four = 0;
        for (int64_t i = 0; i < 4; ++i) four += x[r * x_ld + k + i] * panel[(k * kPanel) + c * 4 + i];
        sums[r][c] += static_cast<uint32_t>(four);
      }
    }
  }
  int32_t stored[kPanel];
  for (int r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < kPanel; ++c) {
      stored[c] = static_cast<int32_t>(sums[r][c] - 128U * static_cast<uint32_t>(x_sums[r]));
    }
    store(stored, r, columns, e);
  }
}

#endif

#if defined(__AVX512VNNI__)
constexpr int kAtOnce = 12;
#else
constexpr int kAtOnce = 4;
#endif

template <int rows>
void multiply_up_to(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, int64_t wanted, const uint8_t* panel,
    int64_t depth, int64_t columns, const Epilogue& e) {
  if (wanted == rows) {
    multiply_rows<rows>(x, x_ld, x_sums, panel, depth, columns, e);
  } else if constexpr (rows > 1) {
    multiply_up_to<rows - 1>(x, x_ld, x_sums, wanted, panel, depth, columns, e);
  }
}

std::size_t size_of(Type type) {
  return type == Type::Double ? 8 : type == Type::Float || type == Type::Int32 ? 4 : 2;
}

void multiply(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, int64_t rows, const uint8_t* panel,
    int64_t depth, int64_t columns, const Epilogue& epilogue) {
  auto e = epilogue;
  while (rows > 0) {
    const int64_t now = rows < kAtOnce ? rows : kAtOnce;
    multiply_up_to<kAtOnce>(x, x_ld, x_sums, now, panel, depth, columns, e);
    x += now * x_ld;
    x_sums += now;
    e.out = static_cast<char*>(e.out) + static_cast<std::size_t>(now * e.ld) * size_of(e.type);
    if (e.x_scales != nullptr) e.x_scales += now * e.x_step;
    rows -= now;
  }
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels{
    TE_INT8_STRING(TE_INT8_ISA), quantize_row,   convert_to_float,   dequantize, column_amax,
    column_scales,    quantize_by_column, pack, row_sum, multiply};

}  // namespace te_int8::cpu::TE_INT8_ISA
