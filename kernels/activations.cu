#include "activations.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

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

/// f of bf16, which has so few values of middling magnitude that each block makes a table of them all in shared memory, and
/// then reads what would take it some 40 instructions. Of other magnitudes f is x / 2, x, or nothing, when it is rounded.
template <Activation kActivation>
class Table {
 public:
  static constexpr uint32_t kEnd = kActivation == Activation::Silu ? 0x43000000U : 0x41800000U;  ///< 128 or 16, as bits

  __device__ void make() {
    const uint32_t thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (uint32_t i = thread; i < 2 * kCount; i += threads) {
      const uint32_t negative = i >= kCount ? 1 : 0, bits = kFirst + i - negative * kCount;
      const float y = activated<kActivation>(__uint_as_float(negative << 31 | bits << 16));
      values_[i] = __bfloat16_as_ushort(__float2bfloat16_rn(y));
    }
    __syncthreads();
  }
  /// Of a magnitude less than kEnd.
  __device__ float below_end(float x) const {
    const uint32_t bits = __float_as_uint(x) >> 16, size = bits & 0x7fffU;
    const uint32_t found = values_[(bits >> 15) * kCount + max(size, kFirst) - kFirst];
    return size < kFirst ? __fmul_rn(0.5F, x) : __uint_as_float(found << 16);
  }
  __device__ float operator()(float x) const {
    if (magnitude(x) < kEnd) return below_end(x);
    if (x > 0.0F) return x;
    return x > -INFINITY ? -0.0F : NAN;
  }

 private:
  static constexpr uint32_t kFirst = 0x3a00U;  ///< 2^-11
  static constexpr uint32_t kCount = (kEnd >> 16) - kFirst;
  uint16_t values_[2 * kCount];  ///< of positive x, then of negative ones
};

/// row_layout gives no more. Two pieces of half want more registers than 1,024 threads have.
template <typename T, int kPieces>
constexpr int kMostThreads = sizeof(T) == 2 && kPieces == 1 ? kMaxRowThreads / 2 : std::is_same_v<T, __half> ? 768 : kMaxRowThreads;

__device__ inline float value_of_its_code(float value, Step step) {
  const float code = __fadd_rn(__uint_as_float(code_of(value, step.inverse)), -12582912.0F);
  return __fmul_rn(step.inverse == 0.0F ? 0.0F : code, step.scale);
}

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

template <typename T, Activation kActivation>
constexpr bool kLooksUp = std::is_same_v<T, __nv_bfloat16> && kActivation != Activation::Relu;

/// f of each of a thread's values, which are a Piece or a Part.
template <typename T, Activation kActivation, typename Values>
__device__ void activate_values(Values& values, const Table<kActivation>* table) {
  if constexpr (!kLooksUp<T, kActivation>) {
    values.map([](float value, auto...) { return activated<kActivation>(value); });
  } else if (values.amax() < Table<kActivation>::kEnd) {
    values.map([&](float value, auto...) { return table->below_end(value); });
  } else {
    values.map([&](float value, auto...) { return (*table)(value); });
  }
}

/// A block that has a table takes several rows, or groups of rows, one after the other. What hides the latency of memory and of
/// the table is as many threads as there is room for: 32 registers each.
template <typename T, int kPieces, Activation kActivation>
__global__ void __launch_bounds__(
    kLooksUp<T, kActivation> ? kMaxRowThreads : kMostThreads<T, kPieces>,
    kLooksUp<T, kActivation> && kPieces == 1 ? 2 : 1) activate_rows(
    const T* __restrict__ x, int64_t rows, int64_t width, const Made made) {
  [[maybe_unused]] __shared__ std::conditional_t<kLooksUp<T, kActivation>, Table<kActivation>, char> table;
  const auto activate = [&](int64_t first_row, const Table<kActivation>* by) {
    Part<T, kPieces> part(rows, width, first_row);
    part.load(x);
    activate_values<T, kActivation>(part, by);
    leave<Leaves::ValuesAndCodes>(part, made);
  };
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y;
  if constexpr (!kLooksUp<T, kActivation>) {
    activate(first, nullptr);
  } else {
    table.make();
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t row = first; row < rows; row += step) {
      activate(row, &table);
      if (row + step < rows) __syncthreads();  // what amax_of_row shares is read
    }
  }
}

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

constexpr int kPieceThreads = 512;

/// With the scales known no thread needs to know what the others of its row have.
template <typename T, Activation kActivation, bool kCodes, typename From>
__global__ void __launch_bounds__(kPieceThreads, 3) activate_pieces(
    const From x, int64_t rows, unsigned pieces_a_row, const Made made) {
  [[maybe_unused]] __shared__ std::conditional_t<kLooksUp<T, kActivation>, Table<kActivation>, char> table;
  const Table<kActivation>* by = nullptr;
  if constexpr (kLooksUp<T, kActivation>) {
    table.make();
    by = &table;
  }
  const int64_t count = rows * pieces_a_row, step = static_cast<int64_t>(gridDim.x) * kPieceThreads;
  for (int64_t number = static_cast<int64_t>(blockIdx.x) * kPieceThreads + threadIdx.x; number < count; number += step) {
    const int64_t row = count <= UINT32_MAX ? static_cast<unsigned>(number) / pieces_a_row : number / pieces_a_row;
    Piece<T, true> piece;
    x.load(piece, number, row);
    const Step known{made.scales[row], made.inverses[row]};
    activate_values<T, kActivation>(piece, by);
    if constexpr (!From::kExact) {  // f may be larger at what the codes stand for: no code is beyond 127
      const float most = __fmul_rn(127.0F, known.scale);
      piece.map([&](float value, int) { return value > most ? most : value < -most ? -most : value; });
    }
    if constexpr (kCodes) {
      piece.store(made.codes + number * kPiece, kPiece, 1, 0, known.inverse);
    } else {
      piece.map([&](float value, int) { return value_of_its_code(value, known); });
      piece.store_values(static_cast<T*>(made.y) + number * kPiece, kPiece, 0);
    }
  }
}

/// The order of operations is LibTorch's.
template <typename T, int kPieces, bool kGamma, bool kBeta, Leaves kLeaves>
__global__ void __launch_bounds__(kMostThreads<T, kPieces>) normalize_rows(
    const LayerNorm norm, const Made made) {
  Part<T, kPieces> part(norm.rows, norm.width, static_cast<int64_t>(blockIdx.x) * blockDim.y);
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
  leave<kLeaves>(part, made);
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

/// f(std::integral_constant<Leaves>) by what there is a place for.
template <typename F>
cudaError_t with_leaves(const void* y, const int8_t* codes, const F& f) {
  if (codes == nullptr) return f(std::integral_constant<Leaves, Leaves::ValuesOfCodes>());
  return y == nullptr ? f(std::integral_constant<Leaves, Leaves::Codes>())
                      : f(std::integral_constant<Leaves, Leaves::ValuesAndCodes>());
}

}  // namespace

bool fits_activations(Type type, int64_t width) {
  const int64_t widest = type == Type::Float   ? kPiece * kMostThreads<float, 1>
                         : type == Type::Half ? 2 * kPiece * kMostThreads<__half, 2>
                                              : 2 * kPiece * kMostThreads<__nv_bfloat16, 2>;
  return width > 0 && width <= widest && width % kPiece == 0;
}

namespace {

/// As many blocks as run at a time, if there is work for them.
template <typename Kernel>
cudaError_t blocks_at_a_time(Kernel kernel, int threads, int sms, int64_t wanted, unsigned& blocks) {
  int on_each = 0;
  const auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&on_each, kernel, threads, 0);
  blocks = static_cast<unsigned>(std::min<int64_t>(wanted, int64_t{sms} * on_each));
  return error;
}

/// `from(T())` is where x comes from.
template <typename MakeSource>
cudaError_t activate_again(
    const MakeSource& from, Activation f, Type type, int64_t rows, int64_t width, int sms, const Made& made, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return with_type(type, [&](auto t) {
    return with_activation(f, [&](auto activation) {
      return with_bool(made.codes != nullptr, [&](auto codes) {
        const auto x = from(t);
        const auto kernel = activate_pieces<
            decltype(t), decltype(activation)::value, decltype(codes)::value, std::decay_t<decltype(x)>>;
        const int64_t pieces_a_row = width / kPiece;
        unsigned blocks = 0;
        const auto error = blocks_at_a_time(kernel, kPieceThreads, sms, ceil_div(rows * pieces_a_row, kPieceThreads), blocks);
        if (error != cudaSuccess) return error;
        kernel<<<blocks, kPieceThreads, 0, stream>>>(x, rows, static_cast<unsigned>(pieces_a_row), made);
        return cudaGetLastError();
      });
    });
  });
}

}  // namespace

cudaError_t activate(
    Activation f, Type type, const void* x, int64_t rows, int64_t width, int sms, const Made& made, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const bool by_table = type == Type::BFloat16 && f != Activation::Relu;
  return with_pieces(type, width, by_table, [&](auto t, auto pieces, const RowLayout& layout) {
    using T = decltype(t);
    return with_activation(f, [&](auto activation) {
      const auto kernel = activate_rows<T, decltype(pieces)::value, decltype(activation)::value>;
      auto grid = layout.grid(rows);
      if (by_table) {
        const auto error = blocks_at_a_time(kernel, layout.threads * layout.rows_a_block, sms, grid.x, grid.x);
        if (error != cudaSuccess) return error;
      }
      kernel<<<grid, layout.block(), 0, stream>>>(static_cast<const T*>(x), rows, width, made);
      return cudaGetLastError();
    });
  });
}

cudaError_t activate_again(
    Activation f, Type type, const void* x, int64_t rows, int64_t width, int sms, const Made& made, cudaStream_t stream) {
  const auto from = [&](auto t) { return Values<decltype(t)>{static_cast<const decltype(t)*>(x)}; };
  return activate_again(from, f, type, rows, width, sms, made, stream);
}

cudaError_t activate_codes_again(
    Activation f, Type type, const int8_t* x_codes, const float* x_scales, int64_t rows, int64_t width, int sms,
    const Made& made, cudaStream_t stream) {
  const auto from = [&](auto t) { return ValuesOfCodes<decltype(t)>{x_codes, x_scales, kCodeExponent}; };
  return activate_again(from, f, type, rows, width, sms, made, stream);
}

cudaError_t layer_norm(const LayerNorm& norm, const Made& made, cudaStream_t stream) {
  if (norm.rows == 0) return cudaSuccess;
  return with_pieces(norm.type, norm.width, /*by_table=*/false, [&](auto t, auto pieces, const RowLayout& layout) {
    using T = decltype(t);
    return with_bool(norm.gamma != nullptr, [&](auto gamma) {
      return with_bool(norm.beta != nullptr, [&](auto beta) {
        return with_leaves(made.y, made.codes, [&](auto leaves) {
          normalize_rows<
              T, decltype(pieces)::value, decltype(gamma)::value, decltype(beta)::value, decltype(leaves)::value>
              <<<layout.grid(norm.rows), layout.block(), 0, stream>>>(norm, made);
          return cudaGetLastError();
        });
      });
    });
  });
}

}  // namespace te_int8::kernels
