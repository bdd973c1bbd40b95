// Where the values come from that a function was given: `fetch` begins to read a piece, `values` makes it of what was read.
#pragma once

#include "piece.cuh"

namespace te_int8::kernels {

/// x itself.
template <typename T>
struct Values {
  static constexpr bool kExact = true;  ///< what scales were found from
  using Fetched = Piece<T, true>;
  const T* x;

  __device__ Fetched fetch(int64_t piece, int64_t /*row*/) const {
    Fetched fetched;
    fetched.load(x + piece * kPiece, kPiece, 1, 0);
    return fetched;
  }
  __device__ Piece<T, true> values(const Fetched& fetched) const { return fetched; }
};

/// What the codes of x stand for.
template <typename T>
struct ValuesOfCodes {
  static constexpr bool kExact = false;
  struct Fetched {
    uint4 codes;
    float scale;
  };
  const int8_t* codes;
  const float* scales;

  __device__ Fetched fetch(int64_t piece, int64_t row) const {
    return {reinterpret_cast<const uint4*>(codes)[piece], scales[row]};
  }
  __device__ Piece<T, true> values(const Fetched& fetched) const {
    Piece<T, true> piece;
    piece.map([&](float, int i) { return __fmul_rn(value_of_code(fetched.codes, i), fetched.scale); });
    return piece;
  }
};

}  // namespace te_int8::kernels
