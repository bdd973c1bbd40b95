// INT8 kernels for the CPU, compiled once per instruction set from kernels.cpp. They know raw pointers and no
// Torch; quantize.cpp, multiply.cpp and convolve.cpp split work among threads and call them, with the floating-point
// environment that the number format wants: rounding to nearest even, denormals kept.
//
// A weight [N,K] is multiplied from panels of kPanel output channels, in which four consecutive codes of
// one channel stand together, as the instructions for dot products of bytes want it:
//
//   panel [kPanel] of int32: -128 sum(w) of each channel
//         [ceil(K/4)][kPanel][4] of int8; channels and codes beyond N and K are zero
//
// Activations are shifted to unsigned bytes, x + 128, as they are brought to the cache, so their product with a channel
// is sum(x w) + 128 sum(w); sums start from the panel's -128 sum(w). Everything is modulo 2^32, so it is exact where the true sum
// fits an int32. Beyond K, where weights are zero, activations may be anything.
#pragma once

#include <cstdint>

namespace te_int8::cpu {

// Functions here are static, as code for one instruction set must not be taken for another.

inline constexpr int64_t kPanel = 32;   ///< output channels in a panel

static constexpr int64_t padded_depth(int64_t k) { return (k + 3) / 4 * 4; }
/// Bytes from row to row of codes that are copied: an odd number of cache lines, or rows may fall into the same sets of the cache.
static constexpr int64_t row_distance(int64_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }
inline constexpr int64_t kPanelOffsets = kPanel * static_cast<int64_t>(sizeof(int32_t));  ///< bytes before its codes
static constexpr int64_t panel_bytes(int64_t k) { return kPanelOffsets + padded_depth(k) * kPanel; }
static constexpr int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

enum class Type { Float, BFloat16, Half, Double, Int32 };

/// What happens to the sums of `rows` x `columns` (at most kPanel) before they are stored.
struct Epilogue {
  Type type;               ///< of the output; Int32 stores raw sums
  void* out;               ///< [rows, columns], `ld` elements from row to row
  int64_t ld;
  const float* x_scales;   ///< one a row, `x_step` elements apart (0: one for all); null: 1
  int64_t x_step;
  const float* w_scales;   ///< kPanel values; null: 1
  const float* bias;       ///< kPanel values; null: none
};

/// That of the rows after the first `rows`.
static inline Epilogue after(Epilogue epilogue, int64_t rows) {
  const int64_t bytes = epilogue.type == Type::Double ? 8 : epilogue.type == Type::Float || epilogue.type == Type::Int32 ? 4 : 2;
  epilogue.out = static_cast<char*>(epilogue.out) + rows * epilogue.ld * bytes;
  if (epilogue.x_scales != nullptr) epilogue.x_scales += rows * epilogue.x_step;
  return epilogue;
}

/// Shifted codes of x as the rows of a matrix. A row may lie in pieces, as a convolution's window does in its image. All `depth`
/// codes of a piece are read, those too that meet the zeros of a panel.
struct Rows {
  const uint8_t* codes;
  int64_t ld;                        ///< codes from row to row
  int64_t depth;                     ///< codes in a piece, a multiple of four
  int64_t pieces = 1;
  const int64_t* offsets = nullptr;  ///< of a row's pieces from its start; null: the only one starts there
};

struct Kernels {
  const char* name;
  /// amax, scale and codes of one row, as te_int8/number_format.h defines them.
  void (*quantize_row)(const float* x, int64_t k, int8_t* codes, float* scale);
  /// The bits of max |x|, of which the larger is that of more values.
  uint32_t (*amax_bits)(const float* x, int64_t k);
  /// Codes by an inverse scale from scales_of; 0 gives zeros, whatever the values.
  void (*codes_of)(const float* x, int64_t k, float inverse, int8_t* codes);
  /// `count` values of `type` (no Int32) as floats.
  void (*to_float)(Type type, const void* x, int64_t count, float* out);
  /// float(code) * scale.
  void (*dequantize)(const int8_t* codes, float scale, int64_t count, float* out);
  /// amax = max(amax, |x|) for `count` columns, as bits.
  void (*column_amax)(const float* x, int64_t count, uint32_t* amax);
  /// From those bits: scales, and the inverses by which values are multiplied, 0 where there are no codes.
  void (*scales_of)(const uint32_t* amax, int64_t count, float* scales, float* inverses);
  /// Codes of one row of values with an inverse scale per column.
  void (*quantize_by_column)(const float* x, const float* inverse, int64_t count, int8_t* codes);
  /// Fills a panel from rows of codes [columns, K], `ld` apart; columns <= kPanel.
  void (*pack)(const int8_t* codes, int64_t ld, int64_t columns, int64_t k, uint8_t* panel);
  /// code + 128 for `count` codes.
  void (*shift)(const int8_t* codes, int64_t count, uint8_t* shifted);
  /// Depthwise: of `rows` positions with `taps` pixels each the products with weights [taps, kPanel], channel by channel from
  /// `first` on, which are added up over the taps.
  void (*multiply_by_channel)(
      const int8_t* const* pixels, int64_t taps, int64_t first, int64_t rows, const int8_t* weights, int64_t columns,
      const Epilogue& epilogue);
  /// `rows` rows of x times one panel.
  void (*multiply)(const Rows& x, int64_t rows, const uint8_t* panel, int64_t columns, const Epilogue& epilogue);
};

}  // namespace te_int8::cpu
