#include "activations.h"

#include "rows.cuh"

namespace te_int8::kernels {
namespace {

/// As LibTorch's kernels round it, step by step, so that nobody can tell who has computed.
template <Activation kActivation>
__device__ inline float activated(float x) {
  if constexpr (kActivation == Activation::Relu) return x <= 0.0F ? 0.0F : x;  // NaN stays
  if constexpr (kActivation == Activation::Silu) return __fdiv_rn(x, __fadd_rn(1.0F, expf(-x)));
  if constexpr (kActivation == Activation::GeluTanh) {
    constexpr float kBeta = 0.7978845608028654F, kKappa = 0.044715F;
    const float inner = __fmul_rn(kBeta, __fmaf_rn(kKappa, __fmul_rn(__fmul_rn(x, x), x), x));
    return __fmul_rn(__fmul_rn(0.5F, x), __fadd_rn(1.0F, tanhf(inner)));
  }
  constexpr float kSqrtHalf = 0.7071067811865476F;
  return __fmul_rn(__fmul_rn(x, 0.5F), __fadd_rn(1.0F, erff(__fmul_rn(x, kSqrtHalf))));
}

/// row_layout gives no more.
template <typename T, int kPieces>
constexpr int kMostThreads = sizeof(T) == 2 && kPieces == 1 ? kMaxRowThreads / 2 : kMaxRowThreads;

/// A thread's part of a row, shared out by a RowLayout.
template <typename T, int kPieces>
class Part {
 public:
  __device__ Part(int64_t rows, int64_t width) : rows_(rows), width_(width) {}

  __device__ int64_t row() const { return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }
  __device__ bool has_row() const { return row() < rows_; }

  __device__ void load(const T* x) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) pieces_[p].load(x + row() * width_ + begin(p), left(p), blockDim.x, threadIdx.x);
  }
  /// What codes by row stand for, rounded to T.
  __device__ void load_codes(const int8_t* codes, const float* scales, uint32_t code_exponent) {
    const float scale = has_row() ? scales[row()] : 0.0F;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      uint4 words = make_uint4(0, 0, 0, 0);
      if (static_cast<int>(threadIdx.x) * kPiece < left(p)) {
        words = reinterpret_cast<const uint4*>(codes + row() * width_ + begin(p))[threadIdx.x];
      }
      pieces_[p].map([&](float, int i) { return __fmul_rn(value_of_code(words, i, code_exponent), scale); });
    }
  }
  /// Each value becomes f(value, i, p), the i-th of piece p, rounded to T.
  template <typename F>
  __device__ void map(const F& f) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      pieces_[p].map([&](float value, int i) { return f(value, i, p); });
    }
  }
  __device__ void store(T* y) const {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) pieces_[p].store_values(y + row() * width_ + begin(p), left(p), threadIdx.x);
  }
  /// What its codes stand for takes the place of each value.
  __device__ void round_to_codes() {
    const Step step = step_of_row();
    map([&](float value, int, int) {
      const float code = __fadd_rn(__uint_as_float(code_of(value, step.inverse)), -12582912.0F);
      return __fmul_rn(step.inverse == 0.0F ? 0.0F : code, step.scale);
    });
  }
  __device__ void store_codes(int8_t* codes, float* scales) const {
    const Step step = step_of_row();
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      pieces_[p].store(codes + row() * width_ + begin(p), left(p), blockDim.x, threadIdx.x, step.inverse);
    }
    if (threadIdx.x == 0 && has_row()) scales[row()] = step.scale;
  }

  __device__ Step step_of_row() const {
    uint32_t amax = 0;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) amax = max(amax, pieces_[p].amax());
    return step_of(amax_of_row(amax));
  }

  /// Where the run of piece p begins in its row, and what is left of the row from there.
  __device__ int64_t begin(int p) const { return static_cast<int64_t>(p) * blockDim.x * kPiece; }
  __device__ int64_t left(int p) const { return has_row() ? width_ - begin(p) : 0; }

 private:
  int64_t rows_, width_;
  Piece<T, true> pieces_[kPieces];
};

/// What a kernel leaves of y.
enum class Leaves { ValuesAndCodes, Codes, ValuesOfCodes };

template <Leaves kLeaves, typename T, int kPieces>
__device__ void leave(Part<T, kPieces>& part, T* y, int8_t* codes, float* scales) {
  if constexpr (kLeaves == Leaves::ValuesOfCodes) part.round_to_codes();
  if constexpr (kLeaves != Leaves::Codes) part.store(y);
  if constexpr (kLeaves != Leaves::ValuesOfCodes) part.store_codes(codes, scales);
}

template <typename T, int kPieces, Activation kActivation, Leaves kLeaves>
__global__ void __launch_bounds__(kMostThreads<T, kPieces>) activate_rows(
    const T* __restrict__ x, int64_t rows, int64_t width, T* __restrict__ y, int8_t* __restrict__ codes,
    float* __restrict__ scales) {
  Part<T, kPieces> part(rows, width);
  part.load(x);
  part.map([](float value, int, int) { return activated<kActivation>(value); });
  leave<kLeaves>(part, y, codes, scales);
}

template <typename T, int kPieces, Activation kActivation, Leaves kLeaves>
__global__ void __launch_bounds__(kMostThreads<T, kPieces>) activate_rows_of_codes(
    const int8_t* __restrict__ x_codes, const float* __restrict__ x_scales, uint32_t code_exponent, int64_t rows,
    int64_t width, T* __restrict__ y, int8_t* __restrict__ codes, float* __restrict__ scales) {
  Part<T, kPieces> part(rows, width);
  part.load_codes(x_codes, x_scales, code_exponent);
  part.map([](float value, int, int) { return activated<kActivation>(value); });
  leave<kLeaves>(part, y, codes, scales);
}

/// The order of operations is LibTorch's.
template <typename T, int kPieces, bool kGamma, bool kBeta, Leaves kLeaves>
__global__ void __launch_bounds__(kMostThreads<T, kPieces>) normalize_rows(
    const LayerNorm norm, T* __restrict__ y, int8_t* __restrict__ codes, float* __restrict__ scales) {
  Part<T, kPieces> part(norm.rows, norm.width);
  part.load(static_cast<const T*>(norm.x));
  const float mean = part.has_row() ? norm.mean[part.row()] : 0.0F, rstd = part.has_row() ? norm.rstd[part.row()] : 0.0F;
  Piece<T, true> gamma[kPieces], beta[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {  // zeros beyond the end of a row
    const auto load = [&](auto& piece, const void* from) {
      piece.load(static_cast<const T*>(from) + part.begin(p), part.left(p), blockDim.x, threadIdx.x);
    };
    if constexpr (kGamma) load(gamma[p], norm.gamma);
    if constexpr (kBeta) load(beta[p], norm.beta);
  }
  part.map([&](float value, int i, int p) {
    const bool inside = part.left(p) > static_cast<int>(threadIdx.x) * kPiece;
    const float centered = inside ? __fsub_rn(value, mean) : 0.0F;
    if constexpr (kGamma && kBeta) return __fmaf_rn(gamma[p].value(i), __fmul_rn(rstd, centered), beta[p].value(i));
    if constexpr (kGamma) return __fmul_rn(gamma[p].value(i), __fmul_rn(rstd, centered));
    if constexpr (kBeta) return __fmaf_rn(rstd, centered, beta[p].value(i));
    return __fmul_rn(rstd, centered);
  });
  leave<kLeaves>(part, y, codes, scales);
}

template <typename F>
cudaError_t with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::Gelu: return f(std::integral_constant<Activation, Activation::Gelu>());
    case Activation::GeluTanh: return f(std::integral_constant<Activation, Activation::GeluTanh>());
    case Activation::Relu: return f(std::integral_constant<Activation, Activation::Relu>());
    case Activation::Silu: return f(std::integral_constant<Activation, Activation::Silu>());
  }
  return cudaErrorInvalidValue;
}

/// f(T(), std::integral_constant<int, pieces>, layout) for rows that fit.
template <typename F>
cudaError_t with_pieces(Type type, int64_t width, const F& f) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    auto layout = row_layout<T, true>(width);
    if (sizeof(T) == 4 && layout.pieces == 2) layout = RowLayout::of_pieces(width, 1);
    if (layout.pieces == 1) return f(t, std::integral_constant<int, 1>(), layout);
    if constexpr (sizeof(T) == 2) {
      if (layout.pieces == 2) return f(t, std::integral_constant<int, 2>(), layout);
    }
    return cudaErrorInvalidValue;
  });
}

/// f(std::integral_constant<Leaves>) by what there is a place for.
template <typename F>
cudaError_t with_leaves(const void* y, const int8_t* codes, const F& f) {
  if (codes == nullptr) return f(std::integral_constant<Leaves, Leaves::ValuesOfCodes>());
  return y == nullptr ? f(std::integral_constant<Leaves, Leaves::Codes>())
                      : f(std::integral_constant<Leaves, Leaves::ValuesAndCodes>());
}

}  // namespace

bool fits_activations(Type type, int64_t width) {
  const int64_t widest = kMaxRowThreads * kPiece * (type == Type::Float ? 1 : 2);
  return width > 0 && width <= widest && width % kPiece == 0;
}

cudaError_t activate(
    Activation f, Type type, const void* x, int64_t rows, int64_t width, const Made& made, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return with_pieces(type, width, [&](auto t, auto pieces, const RowLayout& layout) {
    using T = decltype(t);
    return with_activation(f, [&](auto activation) {
      return with_leaves(made.y, made.codes, [&](auto leaves) {
        activate_rows<T, decltype(pieces)::value, decltype(activation)::value, decltype(leaves)::value>
            <<<layout.grid(rows), layout.block(), 0, stream>>>(
                static_cast<const T*>(x), rows, width, static_cast<T*>(made.y), made.codes, made.scales);
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t activate_codes(
    Activation f, Type type, const int8_t* x_codes, const float* x_scales, int64_t rows, int64_t width, const Made& made,
    cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return with_pieces(type, width, [&](auto t, auto pieces, const RowLayout& layout) {
    using T = decltype(t);
    return with_activation(f, [&](auto activation) {
      return with_leaves(made.y, made.codes, [&](auto leaves) {
        activate_rows_of_codes<T, decltype(pieces)::value, decltype(activation)::value, decltype(leaves)::value>
            <<<layout.grid(rows), layout.block(), 0, stream>>>(
                x_codes, x_scales, kCodeExponent, rows, width, static_cast<T*>(made.y), made.codes, made.scales);
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t layer_norm(const LayerNorm& norm, const Made& made, cudaStream_t stream) {
  if (norm.rows == 0) return cudaSuccess;
  return with_pieces(norm.type, norm.width, [&](auto t, auto pieces, const RowLayout& layout) {
    using T = decltype(t);
    return with_bool(norm.gamma != nullptr, [&](auto gamma) {
      return with_bool(norm.beta != nullptr, [&](auto beta) {
        return with_leaves(made.y, made.codes, [&](auto leaves) {
          normalize_rows<
              T, decltype(pieces)::value, decltype(gamma)::value, decltype(beta)::value, decltype(leaves)::value>
              <<<layout.grid(norm.rows), layout.block(), 0, stream>>>(
                  norm, static_cast<T*>(made.y), made.codes, made.scales);
          return cudaGetLastError();
        });
      });
    });
  });
}

}  // namespace te_int8::kernels
