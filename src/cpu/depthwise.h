// A part of kernels.cpp: products channel by channel.
#pragma once

#include "products.h"

namespace te_int8::cpu::TE_INT8_ISA {
namespace {

/// sums[c] = the sum over the taps of pixel[first + c] * weight[c]; past `columns`, whose pixels may end there, zeros.
void add_up_taps(
    const int8_t* const* pixels, int64_t taps, int64_t first, const int8_t* weights, int64_t columns, int32_t* sums) {
#if defined(__AVX512VNNI__)
  const auto mask = static_cast<__mmask32>((uint64_t{1} << columns) - 1);
  auto left = _mm512_setzero_si512(), right = left;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const auto x = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, pixels[tap] + first));
    const auto w = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + tap * kPanel)));
    const auto products = _mm512_mullo_epi16(x, w);
    left = _mm512_add_epi32(left, _mm512_cvtepi16_epi32(_mm512_castsi512_si256(products)));
    right = _mm512_add_epi32(right, _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(products, 1)));
  }
  _mm512_storeu_si512(sums, left);
  _mm512_storeu_si512(sums + 16, right);
#else
  std::memset(sums, 0, kPanel * sizeof(*sums));
  for (int64_t tap = 0; tap < taps; ++tap) {
    const auto *x = pixels[tap] + first, *w = weights + tap * kPanel;
    const auto add = [&](int64_t count) {
      for (int64_t c = 0; c < count; ++c) sums[c] += static_cast<int16_t>(x[c] * w[c]);
    };
    columns == kPanel ? add(kPanel) : add(columns);
  }
#endif
}

void multiply_by_channel(
    const int8_t* const* pixels, int64_t taps, int64_t first, int64_t rows, const int8_t* weights, int64_t columns,
    const Epilogue& epilogue) {
  alignas(64) int32_t sums[kAtOnce][kPanel];
  for (int64_t row = 0, now; row < rows; row += now) {
    now = rows - row < kAtOnce ? rows - row : kAtOnce;
    for (int64_t r = 0; r < now; ++r) add_up_taps(pixels + (row + r) * taps, taps, first, weights, columns, sums[r]);
    store(sums, now, columns, after(epilogue, row));
  }
}

}  // namespace
}  // namespace te_int8::cpu::TE_INT8_ISA
