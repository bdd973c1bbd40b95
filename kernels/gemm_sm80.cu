// Products on Ampere and Ada (mma.m16n8k32) by CUTLASS's multistage kernels; they run on later GPUs too. Scales, bias
// and cast are in the epilogue. Compiled once per tile and output type, which CMake gives:
//
//   TE_INT8_OUT                       float32, half or bfloat16
//   TE_INT8_TILE_M, _N, _K            of a block
//   TE_INT8_WARP_M, _N                of a warp, whose K is the block's
//   TE_INT8_STAGES                    of loads in flight
// CUTLASS's visitors need the headers before them.
// clang-format off
#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>
// clang-format on

#include "epilogue.cuh"
#include "gemm_registry.h"
#include "gemm_types.cuh"

namespace te_int8::kernels {
namespace {

using namespace cute;  // NOLINT: CUTLASS is unreadable without
namespace threadblock = cutlass::epilogue::threadblock;
using Out = outputs::TE_INT8_OUT;

using Tile = cutlass::gemm::GemmShape<TE_INT8_TILE_M, TE_INT8_TILE_N, TE_INT8_TILE_K>;
using Warp = cutlass::gemm::GemmShape<TE_INT8_WARP_M, TE_INT8_WARP_N, TE_INT8_TILE_K>;
constexpr int kStages = TE_INT8_STAGES;
constexpr int kVector = 4;  ///< neighbouring columns that a thread finishes at once

/// CUTLASS goes over a tile by threads as if results were float.
using ThreadMap = threadblock::OutputTileThreadLayout<Tile, Warp, float, kVector, /*stages=*/1>;

/// The last node of an epilogue and the only one: formula, cast and store.
struct Finish {
  struct Arguments {
    Epilogue epilogue;
    Out* out;
    bool accumulate;
  };
  using Params = Arguments;
  struct SharedStorage {};

  template <typename Problem>
  static constexpr Params to_underlying_arguments(const Problem&, const Arguments& arguments, void*) { return arguments; }
  template <typename Problem>
  static std::size_t get_workspace_size(const Problem&, const Arguments&) { return 0; }

  CUTLASS_HOST_DEVICE Finish() {}
  CUTLASS_HOST_DEVICE Finish(const Params& p, const SharedStorage&) : params(&p) {}

  /// Places: (vector, column, row, step) -> (m, n).
  template <typename Places>
  struct Callbacks : threadblock::EmptyCallbacks {
    static constexpr int kColumns = decltype(size<1>(std::declval<Places>()))::value;
    Places places;
    const Params* params;
    int rows, columns;
    float b_scale[kColumns][kVector], bias[kColumns][kVector];

    CUTLASS_DEVICE Callbacks(const Places& p, const Params* with, int m, int n)
        : places(p), params(with), rows(m), columns(n) {}

    CUTLASS_DEVICE void begin_epilogue() {
      CUTLASS_PRAGMA_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        CUTLASS_PRAGMA_UNROLL
        for (int v = 0; v < kVector; ++v) {
          const int column = get<1>(places(v, c, 0, 0));
          b_scale[c][v] = column < columns ? b_scale_at(params->epilogue, column) : 0.0F;
          bias[c][v] = column < columns ? bias_at(params->epilogue, column) : 0.0F;
        }
      }
    }

    CUTLASS_DEVICE auto visit(int step, int row, int column, int, const cutlass::Array<int32_t, kVector>& sums) {
      const auto place = places(0, column, row, step);
      const int m = get<0>(place), n = get<1>(place);
      if (m < rows && n < columns) {
        const float a_scale = a_scale_at(params->epilogue, m);
        auto* out = reinterpret_cast<cutlass::AlignedArray<Out, kVector>*>(params->out + static_cast<int64_t>(m) * columns + n);
        cutlass::AlignedArray<Out, kVector> result;
        if (params->accumulate) result = *out;
        CUTLASS_PRAGMA_UNROLL
        for (int v = 0; v < kVector; ++v) {
          const float added = params->accumulate ? static_cast<float>(result[v]) : bias[column][v];
          result[v] = static_cast<Out>(epilogue_formula(sums[v], a_scale, b_scale[column][v], added));
        }
        *out = result;
      }
      return sums;
    }
  };

  template <typename Problem>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, const Problem& problem) {
    auto all = make_identity_tensor(problem);
    auto places = group_modes<3, 6>(ThreadMap::partition(all, thread, tile));
    return Callbacks<decltype(places)>(places, params, get<0>(problem), get<1>(problem));
  }

  const Params* params;
};

using Kernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
    int8_t, cutlass::layout::RowMajor, cutlass::ComplexTransform::kNone, 16, int8_t, cutlass::layout::ColumnMajor,
    cutlass::ComplexTransform::kNone, 16, float, cutlass::layout::RowMajor, kVector, int32_t, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Tile, Warp, cutlass::gemm::GemmShape<16, 8, 32>, Finish,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, kStages,
    cutlass::arch::OpMultiplyAddSaturate>::GemmKernel;  // sums never get where they would saturate
using Adapter = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

cudaError_t launch(const Product& product, const Gemm&, int, cudaStream_t stream) {
  const int m = static_cast<int>(product.m), n = static_cast<int>(product.n), k = static_cast<int>(product.k);
  const typename Adapter::Arguments arguments(
      cutlass::gemm::GemmUniversalMode::kGemm, {m, n, k}, 1, {product.epilogue, static_cast<Out*>(product.out), product.accumulate},
      product.a, product.b, nullptr, nullptr, 0, 0, 0, 0, k, k, 0, 0);
  Adapter adapter;
  if (adapter.initialize(arguments, nullptr, stream) != cutlass::Status::kSuccess ||
      adapter.run(stream) != cutlass::Status::kSuccess) {
    const auto error = cudaGetLastError();
    return error == cudaSuccess ? cudaErrorInvalidValue : error;
  }
  return cudaGetLastError();
}

const bool registered = [] {
  for (const bool accumulates : {false, true}) {
    gemm_registry().push_back(
        {.name = "multistage " TE_INT8_VALUE(TE_INT8_TILE_M) "x" TE_INT8_VALUE(TE_INT8_TILE_N) "x" TE_INT8_VALUE(
             TE_INT8_TILE_K) " " TE_INT8_VALUE(TE_INT8_STAGES) " stages",
         .oldest = 80,
         .newest = 89,  // Hopper computes them at half its speed, and later GPUs have next to no INT8 at all
         .fewest_rows = 17,
         .most_rows = kAnyRows,
         .type = kTypeOf<Out>,
         .along_m = false,
         .swizzle = 8,
         .launch = launch,
         .accumulates = accumulates});
  }
  return true;
}();

}  // namespace
}  // namespace te_int8::kernels
