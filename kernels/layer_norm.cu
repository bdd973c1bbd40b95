// Layer normalization with codes of what it gives.
#include "pdl.cuh"
#include "row_part.cuh"

namespace te_int8::kernels {
namespace {

/// The order of operations is LibTorch's.
template <typename T, int kPieces, bool kGamma, bool kBeta, Leaves kLeaves>
__global__ void __launch_bounds__(kMostThreads<T, kPieces>) normalize_rows(
    const LayerNorm norm, const Made made) {
  take_over_from_producer();
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

/// f(std::integral_constant<Leaves>) by what there is a place for.
template <typename F>
cudaError_t with_leaves(const void* y, const int8_t* codes, const F& f) {
  if (codes == nullptr) return f(std::integral_constant<Leaves, Leaves::ValuesOfCodes>());
  return y == nullptr ? f(std::integral_constant<Leaves, Leaves::Codes>())
                      : f(std::integral_constant<Leaves, Leaves::ValuesAndCodes>());
}

}  // namespace

cudaError_t layer_norm(const LayerNorm& norm, const Made& made, cudaStream_t stream) {
  if (norm.rows == 0) return cudaSuccess;
  return with_pieces(norm.type, norm.width, /*by_table=*/false, [&](auto t, auto pieces, const RowLayout& layout) {
    using T = decltype(t);
    return with_bool(norm.gamma != nullptr, [&](auto gamma) {
      return with_bool(norm.beta != nullptr, [&](auto beta) {
        return with_leaves(made.y, made.codes, [&](auto leaves) {
          return launch_after_producer<normalize_rows<
              T, decltype(pieces)::value, decltype(gamma)::value, decltype(beta)::value, decltype(leaves)::value>>(
              {layout.grid(norm.rows), layout.block(), 0, stream}, norm, made);
        });
      });
    });
  });
}

}  // namespace te_int8::kernels
