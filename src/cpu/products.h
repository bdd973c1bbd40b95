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
// multiply_rows: `sums` are those to begin with and the products of `rows` rows of x and the first `columns` channels of a panel's
// codes.

/// Sums of rows, `ld` apart: 0 where all begin with the same.
struct Begin {
  const int32_t* sums;
  int64_t ld;
};

const uint8_t* piece_of(const Rows& x, int64_t piece) { return x.codes + (x.offsets == nullptr ? 0 : x.offsets[piece]); }

/// Memory to be fetched into the cache during a pass: `step` bytes for each four codes.
struct Fetch {
  const uint8_t* from = nullptr;
  int64_t step = 0;
};

#if defined(__AVX512VNNI__)

/// sums += the dot products of four shifted codes of x with 16 channels' four codes. Written in assembler, as GCC 12
/// copies each of the sums, and moves some to memory, around the intrinsic.
void add_products(__m512i& sums, __m512i four, __m512i channels) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(four), "v"(channels));
}

template <int rows, bool fetch>
void multiply_rows(const Rows& x, const uint8_t* panel, int64_t /*columns*/, Begin begin, Sums sums, Fetch next) {
  __m512i left_sums[rows], right_sums[rows];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    left_sums[r] = _mm512_loadu_si512(begin.sums + r * begin.ld);
    right_sums[r] = _mm512_loadu_si512(begin.sums + r * begin.ld + 16);
  }
  const int64_t ld = x.ld;
  for (int64_t piece = 0; piece < x.pieces; ++piece) {
    // A pointer to every third row, from which an address reaches the next two. For one a row there are not enough registers, and
    // GCC would have one a row if it saw that they move together.
    const uint8_t* third[(rows + 2) / 3];
    for (int i = 0; i < (rows + 2) / 3; ++i) third[i] = piece_of(x, piece) + 3 * i * ld;
    for (int64_t k = 0; k < x.depth; k += 4, panel += 4 * kPanel) {
      const auto left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
      if constexpr (fetch) {
        _mm_prefetch(next.from, _MM_HINT_T0);
        _mm_prefetch(next.from + 64, _MM_HINT_T0);
        next.from += next.step;
      }
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        int32_t four;
        std::memcpy(&four, third[r / 3] + r % 3 * ld, 4);
        const auto codes = _mm512_set1_epi32(four);
        add_products(left_sums[r], codes, left);
        add_products(right_sums[r], codes, right);
      }
      for (auto& row : third) {
        row += 4;
        asm("" : "+r"(row));
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    _mm512_store_si512(sums[r], left_sums[r]);
    _mm512_store_si512(sums[r] + 16, right_sums[r]);
  }
}

#elif defined(__AVX2__)

template <int rows, bool>
void multiply_rows(const Rows& x, const uint8_t* panel, int64_t columns, Begin begin, Sums sums, Fetch) {
  // Eight channels at a time: of each, the sums of the even and of the odd pairs of codes.
  for (int64_t first = 0; first < columns; first += 8) {
    __m256i halves[rows][2];
    for (int r = 0; r < rows; ++r) halves[r][0] = halves[r][1] = _mm256_setzero_si256();
    const auto* four_of_eight = panel + first * 4;
    for (int64_t piece = 0; piece < x.pieces; ++piece) {
      const auto* from = piece_of(x, piece);
      for (int64_t k = 0; k < x.depth; k += 4, four_of_eight += 4 * kPanel) {
        const auto left = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four_of_eight)));
        const auto right = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four_of_eight + 16)));
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          int32_t four;
          std::memcpy(&four, from + r * x.ld + k, 4);
          const auto codes = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
          halves[r][0] = _mm256_add_epi32(halves[r][0], _mm256_madd_epi16(left, codes));
          halves[r][1] = _mm256_add_epi32(halves[r][1], _mm256_madd_epi16(right, codes));
        }
      }
    }
    for (int r = 0; r < rows; ++r) {
      // hadd works within 128-bit halves: channels 0 1 4 5 2 3 6 7.
      const auto pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi32(halves[r][0], halves[r][1]), 0b11011000);
      const auto before = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(begin.sums + r * begin.ld + first));
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + first), _mm256_add_epi32(before, pairs));
    }
  }
}

#else

template <int rows, bool>
void multiply_rows(const Rows& x, const uint8_t* panel, int64_t /*columns*/, Begin begin, Sums sums, Fetch) {
  for (int r = 0; r < rows; ++r) std::memmove(sums[r], begin.sums + r * begin.ld, sizeof(sums[r]));
  for (int64_t piece = 0; piece < x.pieces; ++piece) {
    const auto* from = piece_of(x, piece);
    for (int64_t k = 0; k < x.depth; k += 4, panel += 4 * kPanel) {
      for (int r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < kPanel; ++c) {
          int32_t four = 0;
          for (int64_t i = 0; i < 4; ++i) four += from[r * x.ld + k + i] * static_cast<int8_t>(panel[c * 4 + i]);
          sums[r][c] = static_cast<int32_t>(static_cast<uint32_t>(sums[r][c]) + static_cast<uint32_t>(four));
        }
      }
    }
  }
}

#endif

#if defined(__AVX512VNNI__)
constexpr int kAtOnce = 12;  ///< rows in a pass, by the registers
constexpr int kFew = 24;     ///< so many rows wait for the panel to come from memory
#else
constexpr int kAtOnce = 4, kFew = kAtOnce;
#endif
constexpr int64_t kDepth = 512;  ///< codes of a panel that stay in the first-level cache between two passes

template <int rows, bool fetch>
void multiply_up_to(const Rows& x, int64_t wanted, const uint8_t* panel, int64_t columns, Begin begin, Sums sums, Fetch next) {
  if (wanted == rows) {
    multiply_rows<rows, fetch>(x, panel, columns, begin, sums, next);
  } else if constexpr (rows > 1) {
    multiply_up_to<rows - 1, fetch>(x, wanted, panel, columns, begin, sums, next);
  }
}

/// The rows from `row` on, and of these the codes from `k` on.
Rows after(Rows x, int64_t row, int64_t k = 0) {
  x.codes += row * x.ld + k;
  x.depth -= k;
  return x;
}

/// Rows in one piece that need two passes, part by part of the panel: the second pass finds a part in the cache, and both fetch
/// the next part, each its share, so that memory is never idle. Parts without that fetch are slower than whole passes.
void multiply_few(const Rows& x, int64_t rows, const uint8_t* panel, int64_t columns, Begin begin, Sums sums) {
  for (int64_t k = 0; k == 0 || k < x.depth; k += kDepth) {  // sums without products, too
    auto part = after(x, 0, k);
    if (part.depth > kDepth) part.depth = kDepth;
    Fetch next{panel + (k + part.depth) * kPanel};
    for (int64_t row = 0; row < rows; row += kAtOnce) {
      const int64_t now = rows - row < kAtOnce ? rows - row : kAtOnce;
      next.step = 4 * kPanel * now / rows;
      const auto of_part = k == 0 ? begin : Begin{sums[row], kPanel};
      multiply_up_to<kAtOnce, true>(after(part, row), now, panel + k * kPanel, columns, of_part, sums + row, next);
      next.from += part.depth / 4 * next.step;
    }
  }
}

void multiply(const Rows& x, int64_t rows, const uint8_t* panel, int64_t columns, const Epilogue& epilogue) {
  alignas(64) int32_t sums[kFew][kPanel];
  const Begin offsets{reinterpret_cast<const int32_t*>(panel), 0};
  const auto* codes = panel + kPanelOffsets;
  const bool few = x.pieces == 1 && rows > kAtOnce && rows <= kFew;
  for (int64_t row = 0, now; row < rows; row += now) {
    const int64_t left = rows - row, passes = (left + kAtOnce - 1) / kAtOnce;
    now = few ? rows : (left + passes - 1) / passes;  // of about as many rows each
    for (int64_t r = 0; r < now; ++r) {  // or stores would wait for what they replace
      const auto* out = static_cast<const char*>(after(epilogue, row + r).out);
      __builtin_prefetch(out, 1);
      __builtin_prefetch(out + 64, 1);
    }
    if (few) {
      multiply_few(x, rows, codes, columns, offsets, sums);
    } else {
      multiply_up_to<kAtOnce, false>(after(x, row), now, codes, columns, offsets, sums, {});
    }
    store(sums, now, columns, after(epilogue, row));
  }
}

}  // namespace
}  // namespace te_int8::cpu::TE_INT8_ISA
