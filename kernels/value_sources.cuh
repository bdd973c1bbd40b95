// Where the values come from that a function was given.
#pragma once

#include "piece.cuh"

namespace te_int8::kernels {

/// Where x comes from when codes are made again.
template <typename T>
struct Values {
  static constexpr bool kExact = true;  ///< what the scales were found from
  const T* x;
  __device__ void load(Piece<T, true>& piece, int64_t number, int64_t /*row*/) const { piece.load(x + number * kPiece, kPiece, 1, 0); }
};
template <typename T>
struct ValuesOfCodes {
  static constexpr bool kExact = false;
  const int8_t* codes;
  const float* scales;
  uint32_t code_exponent;
  __device__ void load(Piece<T, true>& piece, int64_t number, int64_t row) const {
    const uint4 words = reinterpret_cast<const uint4*>(codes)[number];
    const float scale = scales[row];
    piece.map([&](float, int i) { return __fmul_rn(value_of_code(words, i, code_exponent), scale); });
  }
};

}  // namespace te_int8::kernels
