// What a thread has of a row while a kernel makes the row, and what it leaves of it.
#pragma once

#include <type_traits>

#include "activations.h"
#include "rows.cuh"

namespace te_int8::kernels {

/// row_layout gives no more. Two pieces of half want more registers than 1,024 threads have.
template <typename T, int kPieces>
constexpr int kMostThreads = sizeof(T) == 2 && kPieces == 1 ? kMaxRowThreads / 2 : std::is_same_v<T, __half> ? 768 : kMaxRowThreads;

/// A thread's part of a row, shared out by a RowLayout.
template <typename T, int kPieces>
class Part {
 public:
  __device__ Part(int64_t rows, int64_t width, int64_t first_row)
      : row_(static_cast<uint32_t>(first_row) + threadIdx.y), width_(row_ < rows ? static_cast<int>(width) : 0) {}

  __device__ int64_t row() const { return row_; }
  __device__ bool has_row() const { return width_ > 0; }

  __device__ void load(const T* x) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) pieces_[p].load(x + row() * width_ + begin(p), left(p), blockDim.x, threadIdx.x);
  }
  /// Each value becomes f(value, i, p), the i-th of piece p, rounded to T.
  template <typename F>
  __device__ void map(const F& f) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      pieces_[p].map([&](float value, int i) { return f(value, i, p); });
    }
  }
  template <typename F>
  __device__ void map_words(const F& f) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) pieces_[p].map_words(f);
  }
  __device__ void store(T* y) const {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) pieces_[p].store_values(y + row() * width_ + begin(p), left(p), threadIdx.x);
  }
  /// What its codes stand for takes the place of each value.
  __device__ void round_to_codes() {
    const Step step = step_of_row();
    map([&](float value, int, int) { return value_of_its_code(value, step); });
  }
  __device__ void store_codes(const Made& made) const {
    const Step step = step_of_row();
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      pieces_[p].store(made.codes + row() * width_ + begin(p), left(p), blockDim.x, threadIdx.x, step.inverse);
    }
    if (threadIdx.x > 0 || !has_row()) return;
    made.scales[row()] = step.scale;
    if (made.inverses != nullptr) made.inverses[row()] = step.inverse;
  }

  /// Of this thread's values, as bits.
  __device__ uint32_t amax() const {
    uint32_t result = 0;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) result = max(result, pieces_[p].amax());
    return result;
  }
  __device__ uint32_t least_but_zero() const {
    uint32_t result = pieces_[0].least_but_zero();
#pragma unroll
    for (int p = 1; p < kPieces; ++p) result = min(result, pieces_[p].least_but_zero());
    return result;
  }
  __device__ Step step_of_row() const { return step_of(amax_of_row(amax())); }

  /// Where the run of piece p begins in its row, and what is left of the row from there.
  __device__ int begin(int p) const { return p * static_cast<int>(blockDim.x) * kPiece; }
  __device__ int left(int p) const { return width_ - begin(p); }

 private:
  uint32_t row_;
  int width_;  ///< 0 beyond the last row
  Piece<T, true> pieces_[kPieces];
};

/// What a kernel leaves of y.
enum class Leaves { ValuesAndCodes, Codes, ValuesOfCodes };

template <Leaves kLeaves, typename T, int kPieces>
__device__ void leave(Part<T, kPieces>& part, const Made& made) {
  if constexpr (kLeaves == Leaves::ValuesOfCodes) part.round_to_codes();
  if constexpr (kLeaves != Leaves::Codes) part.store(static_cast<T*>(made.y));
  if constexpr (kLeaves != Leaves::ValuesOfCodes) part.store_codes(made);
}

/// f(T(), std::integral_constant<int, pieces>, layout) for rows that fit. `by_table`: with one piece where it can be.
template <typename F>
cudaError_t with_pieces(Type type, int64_t width, bool by_table, const F& f) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    auto layout = row_layout<T, true>(width);
    if (by_table && layout.rows_a_block == 1 && width <= kMaxRowThreads * kPiece) layout = RowLayout::of_pieces(width, 1);
    if (sizeof(T) == 4 && layout.pieces == 2) layout = RowLayout::of_pieces(width, 1);
    if (layout.pieces == 1) return f(t, std::integral_constant<int, 1>(), layout);
    if constexpr (sizeof(T) == 2) {
      if (layout.pieces == 2) return f(t, std::integral_constant<int, 2>(), layout);
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace te_int8::kernels
