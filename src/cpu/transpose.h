// Transposes of matrices in the cache: of codes to channels last, of results to channels first.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace te_int8::cpu {

#if defined(__SSE2__)

/// 4 x 4 elements of 4 bytes.
inline void transpose_tile(const uint32_t* from, int64_t from_ld, uint32_t* to, int64_t to_ld) {
  __m128i rows[4];
  for (int i = 0; i < 4; ++i) rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_ld));
  const auto low01 = _mm_unpacklo_epi32(rows[0], rows[1]), low23 = _mm_unpacklo_epi32(rows[2], rows[3]);
  const auto high01 = _mm_unpackhi_epi32(rows[0], rows[1]), high23 = _mm_unpackhi_epi32(rows[2], rows[3]);
  const __m128i columns[4] = {
      _mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23), _mm_unpacklo_epi64(high01, high23),
      _mm_unpackhi_epi64(high01, high23)};
  for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_ld), columns[i]);
}

/// 16 x 16 bytes: rows i and i + 8 are interleaved four times over, which brings byte r of row c to place c of row r.
inline void transpose_tile(const int8_t* from, int64_t from_ld, int8_t* to, int64_t to_ld) {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_ld));
  for (int pass = 0; pass < 4; ++pass) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    std::copy(b, b + 16, a);
  }
  for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_ld), a[i]);
}

#endif

/// to[c, r] = from[r, c] for a matrix [rows, columns]; leading dimensions in elements.
template <typename Element>
void transpose(const Element* from, int64_t from_ld, int64_t rows, int64_t columns, Element* to, int64_t to_ld) {
  int64_t row = 0;
#if defined(__SSE2__)
  constexpr int64_t tile = sizeof(Element) == 4 ? 4 : sizeof(Element) == 1 ? 16 : 0;
  if constexpr (tile > 0) {
    const int64_t whole = columns / tile * tile;
    for (; row + tile <= rows; row += tile) {
      for (int64_t column = 0; column < whole; column += tile) {
        transpose_tile(from + row * from_ld + column, from_ld, to + column * to_ld + row, to_ld);
      }
      for (int64_t column = whole; column < columns; ++column) {
        for (int64_t i = row; i < row + tile; ++i) to[column * to_ld + i] = from[i * from_ld + column];
      }
    }
  }
#endif
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t i = row; i < rows; ++i) to[column * to_ld + i] = from[i * from_ld + column];
  }
}

}  // namespace te_int8::cpu
