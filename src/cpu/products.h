// A part of kernels.cpp: products of rows and panels, and the epilogue that stores them.
//
// AVX-512 VNNI multiplies bytes in fours (vpdpbusd, which does not saturate). AVX2 has only vpmaddubsw,
// whose 16-bit sums saturate, so bytes are widened and multiplied in pairs (vpmaddwd).
#pragma once

#include "floats.h"

namespace te_int8::cpu::TE_INT8_ISA {
namespace {

using Sums = int32_t (*)[kPanel];

// ---- Sums to results --------------------------------------------------------------------------------

std::size_t size_of(Type type) {
  return type == Type::Double ? 8 : type == Type::Float || type == Type::Int32 ? 4 : 2;
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
template <Type type>
void store_16(
    __m512i sums, int64_t row, int64_t column, __mmask16 mask, const Epilogue& e) {
  const int64_t at = row * e.ld + column;
  if constexpr (type == Type::Int32) {
    _mm512_mask_storeu_epi32(static_cast<int32_t*>(e.out) + at, mask, sums);
    return;
  }
  auto value = _mm512_cvtepi32_ps(sums);
  if (e.x_scales != nullptr) value = _mm512_mul_ps(value, _mm512_set1_ps(e.x_scales[row * e.x_step]));
  if (e.w_scales != nullptr) value = _mm512_mul_ps(value, _mm512_loadu_ps(e.w_scales + column));
  if (e.bias != nullptr) value = _mm512_add_ps(value, _mm512_loadu_ps(e.bias + column));
  if constexpr (type == Type::Float) {
    _mm512_mask_storeu_ps(static_cast<float*>(e.out) + at, mask, value);
  } else if constexpr (type == Type::BFloat16) {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(e.out) + at, mask, to_bfloat16(value));
  } else if constexpr (type == Type::Half) {
    _mm256_mask_storeu_epi16(
        static_cast<uint16_t*>(e.out) + at, mask,
        _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else if constexpr (type == Type::Double) {
    auto* out = static_cast<double*>(e.out) + at;
    _mm512_mask_storeu_pd(out, static_cast<__mmask8>(mask), _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
    _mm512_mask_storeu_pd(
        out + 8, static_cast<__mmask8>(mask >> 8), _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
  }
}

template <Type type>
void store_as(const Sums sums, int64_t rows, int64_t columns, const Epilogue& e) {
  const auto mask = static_cast<uint32_t>((uint64_t{1} << columns) - 1);
  for (int64_t row = 0; row < rows; ++row) {
    store_16<type>(_mm512_loadu_si512(sums[row]), row, 0, static_cast<__mmask16>(mask), e);
    store_16<type>(_mm512_loadu_si512(sums[row] + 16), row, 16, static_cast<__mmask16>(mask >> 16), e);
  }
}

#else

template <Type type>
void store_as(const Sums sums, int64_t rows, int64_t columns, const Epilogue& e) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t at = row * e.ld + column;
      if constexpr (type == Type::Int32) {
        static_cast<int32_t*>(e.out)[at] = sums[row][column];
        continue;
      }
      auto value = static_cast<float>(sums[row][column]);
      if (e.x_scales != nullptr) value *= e.x_scales[row * e.x_step];
      if (e.w_scales != nullptr) value *= e.w_scales[column];
      if (e.bias != nullptr) value += e.bias[column];
      if constexpr (type == Type::Float) static_cast<float*>(e.out)[at] = value;
      if constexpr (type == Type::Double) static_cast<double*>(e.out)[at] = static_cast<double>(value);
      if constexpr (type == Type::Half) static_cast<uint16_t*>(e.out)[at] = float_to_half(value);
      if constexpr (type == Type::BFloat16) static_cast<uint16_t*>(e.out)[at] = float_to_bfloat16(value);
    }
  }
}

#endif

void store(const Sums sums, int64_t rows, int64_t columns, const Epilogue& e) {
  switch (e.type) {
    case Type::Float: return store_as<Type::Float>(sums, rows, columns, e);
    case Type::BFloat16: return store_as<Type::BFloat16>(sums, rows, columns, e);
    case Type::Half: return store_as<Type::Half>(sums, rows, columns, e);
    case Type::Double: return store_as<Type::Double>(sums, rows, columns, e);
    case Type::Int32: return store_as<Type::Int32>(sums, rows, columns, e);
  }
}

// ---- Products ---------------------------------------------------------------------------------------
// multiply_rows: `rows` rows of x times the first `columns` channels of a panel. It leaves its sums in memory,
// for the registers are full of them.

#if defined(__AVX512VNNI__)

/// sums += the dot products of 16 channels' four codes with four codes of x. Written in assembler, as GCC 12
/// copies each of the sums, and moves some to memory, around the intrinsic.
void add_products(__m512i& sums, __m512i channels, __m512i four) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(channels), "v"(four));
}

template <int rows>
void multiply_rows(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, const uint8_t* panel, int64_t depth,
    int64_t /*columns*/, Sums result) {
  __m512i sums[rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += 4, panel += 4 * kPanel) {
    const auto left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      int32_t four;
      std::memcpy(&four, x + r * x_ld + k, 4);
      const auto codes = _mm512_set1_epi32(four);
      add_products(sums[r][0], left, codes);
      add_products(sums[r][1], right, codes);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    const auto excess = _mm512_set1_epi32(static_cast<int32_t>(128U * static_cast<uint32_t>(x_sums[r])));
    _mm512_storeu_si512(result[r], _mm512_sub_epi32(sums[r][0], excess));
    _mm512_storeu_si512(result[r] + 16, _mm512_sub_epi32(sums[r][1], excess));
  }
}

#elif defined(__AVX2__)

template <int rows>
void multiply_rows(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, const uint8_t* panel, int64_t depth,
    int64_t columns, Sums result) {
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
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(result[r] + first), _mm256_sub_epi32(pairs, excess));
    }
  }
}

#else

template <int rows>
void multiply_rows(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, const uint8_t* panel, int64_t depth,
    int64_t /*columns*/, Sums result) {
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
  for (int r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < kPanel; ++c) {
      result[r][c] = static_cast<int32_t>(sums[r][c] - 128U * static_cast<uint32_t>(x_sums[r]));
    }
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
    int64_t depth, int64_t columns, Sums result) {
  if (wanted == rows) {
    multiply_rows<rows>(x, x_ld, x_sums, panel, depth, columns, result);
  } else if constexpr (rows > 1) {
    multiply_up_to<rows - 1>(x, x_ld, x_sums, wanted, panel, depth, columns, result);
  }
}

void multiply(
    const int8_t* x, int64_t x_ld, const int32_t* x_sums, int64_t rows, const uint8_t* panel,
    int64_t depth, int64_t columns, const Epilogue& epilogue) {
  auto e = epilogue;
  alignas(64) int32_t sums[kAtOnce][kPanel];
  while (rows > 0) {
    const int64_t now = rows < kAtOnce ? rows : kAtOnce;
    multiply_up_to<kAtOnce>(x, x_ld, x_sums, now, panel, depth, columns, sums);
    store(sums, now, columns, e);
    x += now * x_ld;
    x_sums += now;
    e.out = static_cast<char*>(e.out) + static_cast<std::size_t>(now * e.ld) * size_of(e.type);
    if (e.x_scales != nullptr) e.x_scales += now * e.x_step;
    rows -= now;
  }
}

}  // namespace
}  // namespace te_int8::cpu::TE_INT8_ISA
