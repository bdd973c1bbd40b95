#include "activations.h"

#include <type_traits>

#include "functions.cuh"
#include "pdl.cuh"
#include "row_part.cuh"
#include "value_sources.cuh"

namespace te_int8::kernels {
namespace {

/// How many blocks of 1,024 threads, each with a table, a multiprocessor is to have room for. Before sm_90 extremes of two values
/// in a word take more registers than that leaves.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kTableBlocks = 1;
#else
constexpr int kTableBlocks = 2;
#endif

/// A block that has a table takes several rows, or groups of rows, one after the other. What hides the latency of memory and of
/// the table is as many threads as there is room for.
template <typename T, int kPieces, Activation kActivation>
__global__ void __launch_bounds__(
    kLooksUp<T, kActivation> ? kMaxRowThreads : kMostThreads<T, kPieces>,
    kLooksUp<T, kActivation> && kPieces == 1 ? kTableBlocks : 1) activate_rows(
    const T* __restrict__ x, int64_t rows, int64_t width, const Made made) {
  [[maybe_unused]] __shared__ std::conditional_t<kLooksUp<T, kActivation>, ValueTable<kActivation>, char> table;
  if constexpr (kLooksUp<T, kActivation>) table.make();
  take_over_from_producer();
  const auto activate = [&](int64_t first_row, const ValueTable<kActivation>* by) {
    Part<T, kPieces> part(rows, width, first_row);
    part.load(x);
    activate_values<T, kActivation>(part, by);
    leave<Leaves::ValuesAndCodes>(part, made);
  };
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y;
  if constexpr (!kLooksUp<T, kActivation>) {
    activate(first, nullptr);
  } else {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t row = first; row < rows; row += step) {
      activate(row, &table);
      if (row + step < rows) __syncthreads();  // what amax_of_row shares is read
    }
  }
}

constexpr int kPieceThreads = 512;

/// With the scales known no thread needs to know what the others of its row have.
template <typename T, Activation kActivation, bool kCodes, typename From>
__global__ void __launch_bounds__(kPieceThreads, 3) activate_pieces(
    const From x, int64_t rows, unsigned pieces_a_row, const Made made) {
  [[maybe_unused]] __shared__ std::conditional_t<kLooksUp<T, kActivation>, ValueTable<kActivation>, char> table;
  const ValueTable<kActivation>* by = nullptr;
  if constexpr (kLooksUp<T, kActivation>) {
    table.make();
    by = &table;
  }
  const int64_t count = rows * pieces_a_row, step = static_cast<int64_t>(gridDim.x) * kPieceThreads;
  for (int64_t number = static_cast<int64_t>(blockIdx.x) * kPieceThreads + threadIdx.x; number < count; number += step) {
    const int64_t row = count <= UINT32_MAX ? static_cast<unsigned>(number) / pieces_a_row : number / pieces_a_row;
    auto piece = x.values(x.fetch(number, row));
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

bool fits_activations(Type type, int64_t width) {
  const int64_t widest = type == Type::Float   ? kPiece * kMostThreads<float, 1>
                         : type == Type::Half ? 2 * kPiece * kMostThreads<__half, 2>
                                              : 2 * kPiece * kMostThreads<__nv_bfloat16, 2>;
  return width > 0 && width <= widest && width % kPiece == 0;
}

cudaError_t activate(
    Activation f, Type type, const void* x, int64_t rows, int64_t width, int sms, const Made& made, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const bool by_table = type == Type::BFloat16 && f != Activation::Relu;
  return with_pieces(type, width, by_table, [&](auto t, auto pieces, const RowLayout& layout) {
    using T = decltype(t);
    return with_activation(f, [&](auto activation) {
      constexpr auto kKernel = activate_rows<T, decltype(pieces)::value, decltype(activation)::value>;
      auto grid = layout.grid(rows);
      if (by_table) {
        const auto error = blocks_at_a_time(kKernel, layout.threads * layout.rows_a_block, sms, grid.x, grid.x);
        if (error != cudaSuccess) return error;
      }
      return launch_after_producer<kKernel>({grid, layout.block(), 0, stream}, static_cast<const T*>(x), rows, width, made);
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
  const auto from = [&](auto t) { return ValuesOfCodes<decltype(t)>{x_codes, x_scales}; };
  return activate_again(from, f, type, rows, width, sms, made, stream);
}

}  // namespace te_int8::kernels
