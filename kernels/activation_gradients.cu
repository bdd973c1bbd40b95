// Gradients of activations with their codes by row, and on the way what their columns need.
#include <algorithm>
#include <type_traits>

#include "activations.h"
#include "column_sums.h"
#include "functions.cuh"
#include "quantize.h"
#include "rows.cuh"
#include "tiles.cuh"
#include "value_sources.cuh"

namespace te_int8::kernels {
namespace {

using T = __nv_bfloat16;

/// Sums of each part's columns [parts, width], or null; or the maxima of columns [width], zero before.
struct OfColumns {
  float* sums;
  uint32_t* amax;
};

/// The sums or maxima of the columns that a thread takes, over rows of its own.
template <bool kMaxima>
class Columns;

template <>
class Columns<false> {
 public:
  __device__ void take(const Piece<T, true>& piece) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sums_[i] += piece.value(i);
  }
  /// All rows of a part are taken.
  __device__ void end_part(float* to) {
#pragma unroll
    for (int i = 0; i < kPiece; i += 4) {
      reinterpret_cast<float4*>(to)[i / 4] = make_float4(sums_[i], sums_[i + 1], sums_[i + 2], sums_[i + 3]);
    }
#pragma unroll
    for (float& sum : sums_) sum = 0;
  }

 private:
  float sums_[kPiece] = {};
};

template <>
class Columns<true> {
 public:
  __device__ void take(const Piece<T, true>& piece) { piece.raise(maxima_); }
  __device__ void end(Turned& turned, int64_t first, int64_t width, uint32_t* amax) const {
    raise_columns<T>(maxima_, turned, first, width, amax);
  }

 private:
  uint32_t maxima_[kPiece * sizeof(T) / 4] = {};
};

template <Activation kActivation>
constexpr bool kIsGelu = kActivation == Activation::Gelu || kActivation == Activation::GeluTanh;

/// dy becomes dy f'(x).
template <Activation kActivation>
__device__ void differentiate(
    Piece<T, true>& dy, const Piece<T, true>& x, [[maybe_unused]] const DerivativeTable<kActivation>* table) {
  if constexpr (!kIsGelu<kActivation>) {
    dy.map([&](float value, int i) { return gradient<kActivation>(value, x.value(i)); });
  } else if (x.amax() < DerivativeTable<kActivation>::kEnd) {
    dy.map_words([&](uint32_t word, int i) {
      const uint4 of_dy = make_uint4(word, 0, 0, 0);
      return word_of_values<T>(
          __fmul_rn(value_of<T>(of_dy, 0), table->of_low(x.word(i))),
          __fmul_rn(value_of<T>(of_dy, 1), table->of_high(x.word(i))));
    });
  } else {
    dy.map([&](float value, int i) { return __fmul_rn(value, (*table)(x.value(i))); });
  }
}

constexpr int kGradientThreads = 512, kPieces = 2;

/// Each row of a block's threads takes parts of kSummedRows rows of the matrix, two pieces a thread, the next row on its way.
template <Activation kActivation, bool kMaxima, typename From>
__global__ void __launch_bounds__(kGradientThreads, 1) gradients_by_parts(
    const From x, T* dy, unsigned rows, unsigned pieces_a_row, int8_t* __restrict__ codes, float* __restrict__ scales,
    const OfColumns of_columns) {
  constexpr unsigned kWarps = kGradientThreads / 32;
  [[maybe_unused]] __shared__ std::conditional_t<kIsGelu<kActivation>, DerivativeTable<kActivation>, char> table;
  __shared__ uint32_t of_warp[2][kWarps];  // of this row and the next, so that one barrier a row is enough
  const DerivativeTable<kActivation>* by = nullptr;
  if constexpr (kIsGelu<kActivation>) {
    table.make();
    by = &table;
  }
  const unsigned lane = threadIdx.x % 32, warps_a_row = blockDim.x / 32, first_warp = threadIdx.y * warps_a_row;
  const unsigned warp = first_warp + threadIdx.x / 32;
  const unsigned padded_rows = (rows + kSummedRows - 1) / kSummedRows * kSummedRows;
  const unsigned to_next_part = (gridDim.x * blockDim.y - 1) * kSummedRows + 1;
  unsigned first_row = blockIdx.x * blockDim.y * kSummedRows;  // of the block, whose threads meet at barriers

  Columns<kMaxima> columns[kPieces];
  typename From::Fetched next_x[kPieces] = {};
  Piece<T, true> next_dy[kPieces];
  const auto piece_of_row = [&](int p) { return p * blockDim.x + threadIdx.x; };
  const auto fetch = [&] {
    const unsigned row = first_row + threadIdx.y * kSummedRows;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const bool there = row < rows && piece_of_row(p) < pieces_a_row;
      const int64_t number = row * pieces_a_row + piece_of_row(p);
      next_dy[p].load(dy + number * kPiece, there ? kPiece : 0, 1, 0);
      if (there) next_x[p] = x.fetch(number, row);
    }
  };
  fetch();
  while (first_row < padded_rows) {
    const unsigned row = first_row + threadIdx.y * kSummedRows;
    const bool ends_part = row % kSummedRows == kSummedRows - 1;
    Piece<T, true> pieces[kPieces];
    uint32_t amax = 0;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      pieces[p] = next_dy[p];
      differentiate<kActivation>(pieces[p], x.values(next_x[p]), by);
      amax = max(amax, pieces[p].amax());
    }
    first_row += ends_part ? to_next_part : 1;
    fetch();
    amax = warp_max(amax);
    if (lane == 0) of_warp[row % 2][warp] = amax;
    __syncthreads();
    const Step step = step_of(warp_max(lane < warps_a_row ? of_warp[row % 2][first_warp + lane] : 0));
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      if (piece_of_row(p) >= pieces_a_row) continue;
      if (row < rows) {
        const int64_t begin = int64_t{row * pieces_a_row + piece_of_row(p)} * kPiece;
        columns[p].take(pieces[p]);
        pieces[p].store_values(dy + begin, kPiece, 0);
        pieces[p].template store<true>(codes + begin, kPiece, 1, 0, step.inverse);
      }
      if constexpr (!kMaxima) {
        if (of_columns.sums != nullptr && ends_part && row - (kSummedRows - 1) < rows) {
          columns[p].end_part(of_columns.sums + (int64_t{row / kSummedRows} * pieces_a_row + piece_of_row(p)) * kPiece);
        }
      }
    }
    if (threadIdx.x == 0 && row < rows) scales[row] = step.scale;
  }
  if constexpr (kMaxima) {
    constexpr unsigned kAtOnce = 8;
    __shared__ Turned turned[kAtOnce];
    for (unsigned first = 0; first < kWarps; first += kAtOnce) {
      __syncthreads();
      if (warp < first || warp >= first + kAtOnce) continue;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        __syncwarp();
        columns[p].end(
            turned[warp - first], int64_t{piece_of_row(p) - lane} * kPiece, int64_t{pieces_a_row} * kPiece, of_columns.amax);
      }
    }
  }
}

/// f(From()) for the x of a gradient.
template <typename F>
cudaError_t with_source(const ActivationGradient& gradient, const F& f) {
  if (gradient.x_codes != nullptr) return f(ValuesOfCodes<T>{gradient.x_codes, gradient.x_scales});
  return f(Values<T>{static_cast<const T*>(gradient.x)});
}

dim3 block_of(int64_t width) {
  const auto threads = static_cast<unsigned>(ceil_div(ceil_div(width, kPiece * kPieces), 32) * 32);
  return {threads, kGradientThreads / threads};
}

template <bool kMaxima>
cudaError_t launch(const ActivationGradient& gradient, int sms, const OfColumns& of_columns, cudaStream_t stream) {
  if (gradient.rows == 0 || gradient.width == 0) return cudaSuccess;
  const auto block = block_of(gradient.width);
  const int64_t wanted = ceil_div(ceil_div(gradient.rows, kSummedRows), block.y);
  return with_activation(gradient.f, [&](auto activation) {
    return with_source(gradient, [&](auto x) {
      gradients_by_parts<decltype(activation)::value, kMaxima>
          <<<static_cast<unsigned>(std::min<int64_t>(wanted, sms)), block, 0, stream>>>(
              x, static_cast<T*>(gradient.dy), static_cast<unsigned>(gradient.rows),
              static_cast<unsigned>(gradient.width / kPiece), gradient.codes, gradient.scales, of_columns);
      return cudaGetLastError();
    });
  });
}

}  // namespace

bool fits_activation_gradient(Type type, int64_t rows, int64_t width, int sms) {
  constexpr int64_t kNarrowest = 4096, kWidest = kGradientThreads * kPieces * kPiece;
  if (type != Type::BFloat16 || width % kPiece != 0 || width < kNarrowest || width > kWidest) return false;
  const int64_t parts = ceil_div(rows, kSummedRows);
  return 2 * parts >= int64_t{sms} * block_of(width).y && rows * (width / kPiece) < int64_t{1} << 31;
}

std::size_t activation_gradient_workspace(int64_t rows, int64_t width) {
  return static_cast<std::size_t>(ceil_div(rows, kSummedRows) * width) * sizeof(float);
}

cudaError_t activation_gradient(
    const ActivationGradient& gradient, int sms, void* workspace, float* sums, cudaStream_t stream) {
  auto* of_part = sums == nullptr ? nullptr : static_cast<float*>(workspace);
  const auto error = launch<false>(gradient, sms, {of_part, nullptr}, stream);
  if (error != cudaSuccess || sums == nullptr) return error;
  return add_up_parts(of_part, gradient.rows, gradient.width, sums, stream);
}

cudaError_t activation_gradient_finding_maxima(
    const ActivationGradient& gradient, int sms, uint32_t* column_amax, cudaStream_t stream) {
  const auto cleared = cudaMemsetAsync(column_amax, 0, quantize_columns_workspace(gradient.width), stream);
  return cleared != cudaSuccess ? cleared : launch<true>(gradient, sms, {nullptr, column_amax}, stream);
}

}  // namespace te_int8::kernels
