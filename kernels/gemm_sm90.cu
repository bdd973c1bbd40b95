// Products on Hopper (sm_90a) by CUTLASS: TMA and wgmma in a warp-specialized pipeline, scales, bias and cast in the
// epilogue. Compiled once per tile and output type (gemm_sm90.cuh).
#include <utility>

#include "gemm_sm90.cuh"

namespace te_int8::kernels {
namespace {

using EpilogueOfRows = EpilogueOf<ByRow<RowScales>>;
using Mainloop = MainloopBeside<EpilogueOfRows>;
static_assert(!TE_INT8_SWAPPED || size(Cluster{}) == 1, "a bias goes to registers, and is not shared by a cluster");
using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, EpilogueOfRows>;

cudaError_t launch(const Product& product, const Gemm& how, int sms, cudaStream_t stream) {
  auto m = static_cast<int>(product.m), n = static_cast<int>(product.n);
  const auto k = static_cast<int>(product.k);
  const int8_t *left = product.a, *right = product.b;
  if (TE_INT8_SWAPPED) {
    std::swap(m, n);
    std::swap(left, right);
  }
  const auto& scales = product.epilogue;
  const auto out_strides = cutlass::make_cute_packed_stride(typename EpilogueOfRows::StrideD{}, {m, n, 1});
#if TE_INT8_ACCUMULATES
  const typename Added::Arguments added{};
  const auto* const source = static_cast<const Source*>(product.out);
  const auto source_strides = out_strides;
#else
  const typename Added::Arguments added{scales.bias, scales.bias_type};
  const void* const source = nullptr;
  const typename EpilogueOfRows::StrideC source_strides{};
#endif
  return launch_kernel<Kernel>(
      {cutlass::gemm::GemmUniversalMode::kGemm,
       {m, n, k, 1},
       {left, cutlass::make_cute_packed_stride(typename Mainloop::StrideA{}, {m, k, 1}), right,
        cutlass::make_cute_packed_stride(typename Mainloop::StrideB{}, {n, k, 1})},
       {{{scales.b_scales, 1.0F, scale_strides<ColumnScales>(scales.b_step)},
         {{scales.a_scales, 1.0F, scale_strides<RowScales>(scales.a_step)}, {}, {}},
         added,
         {}},
        source,
        source_strides,
        static_cast<Out*>(product.out),
        out_strides}},
      how, sms, stream);
}

const bool registered = register_gemm(
    {.name = TE_INT8_SWAPPED ? "swapped " TE_INT8_NAME : TE_INT8_NAME,
     .fewest_rows = !TE_INT8_SWAPPED ? 33 : TE_INT8_TILE_N == 16 ? 1 : TE_INT8_TILE_N / 2 + 1,
     .most_rows = TE_INT8_SWAPPED ? TE_INT8_TILE_N : kAnyRows,
     .launch = launch,
     .accumulates = static_cast<bool>(TE_INT8_ACCUMULATES)});

}  // namespace
}  // namespace te_int8::kernels
