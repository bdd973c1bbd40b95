// Convolutions on Hopper (sm_90a) by CUTLASS as products without their left matrix: TMA reads the windows straight from the codes
// (im2col mode), otherwise gemm_sm90.cu's pipeline. Compiled once per tile and output type (gemm_sm90.cuh).
//
//   a [N,H,W,C] codes, b [O,R,S,C] -> out [N * P * Q, O]
#include "gemm_sm90.cuh"

#include <cutlass/conv/collective/collective_builder.hpp>  // needs headers that it does not name
#include <cutlass/conv/convnd_problem_shape.hpp>
#include <cutlass/fast_math.h>

#include "windows.h"

namespace te_int8::kernels {
namespace {

namespace conv = cutlass::conv;
using Geometry = conv::ConvProblemShape<conv::Operator::kFprop, 2>;

/// a's scales: one a sample, which many rows share.
class ScaleOfSample : public ByRow<RowScales>, private NodeWithoutWorkspace {
  using Base = ByRow<RowScales>;

 public:
  struct Arguments {
    typename Base::Arguments of_samples;
    int rows_of_sample = 1;
  };
  struct Params {
    typename Base::Params base;
    cutlass::FastDivmod rows_of_sample;
  };

  template <typename Problem>
  static constexpr Params to_underlying_arguments(const Problem& problem, const Arguments& arguments, void* workspace) {
    return {Base::to_underlying_arguments(problem, arguments.of_samples, workspace), arguments.rows_of_sample};
  }
  using NodeWithoutWorkspace::can_implement, NodeWithoutWorkspace::get_workspace_size, NodeWithoutWorkspace::initialize_workspace;

  CUTLASS_HOST_DEVICE ScaleOfSample() {}
  CUTLASS_HOST_DEVICE ScaleOfSample(const Params& params, const typename Base::SharedStorage& storage)
      : Base(params.base, storage), rows_of_sample_(params.rows_of_sample) {}

  template <typename Callbacks>
  struct BySample : Callbacks {
    cutlass::FastDivmod rows_of_sample;
    CUTLASS_DEVICE BySample(const Callbacks& callbacks, cutlass::FastDivmod rows)
        : Callbacks(callbacks), rows_of_sample(rows) {}

    CUTLASS_DEVICE void begin() {
      const float* first = this->params.ptr_col;
      if (first == nullptr) return;
      auto from = filter_zeros(this->tCgCol);
      auto to = filter_zeros(this->tCrCol);
      auto place = filter_zeros(this->tCcCol, this->tCgCol.stride());
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < size(from); ++i) {
        const bool inside = elem_less(place(i), this->residue_tCcCol);
        to(i) = inside ? first[rows_of_sample.div(static_cast<int>(&from(i) - first))] : 0.0F;
      }
    }
  };

  template <bool kReferenceSource, typename... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::detail::ConsumerStoreArgs<Args...>& args) {
    auto callbacks = Base::template get_consumer_store_callbacks<kReferenceSource>(args);
    return BySample<decltype(callbacks)>(callbacks, rows_of_sample_);
  }

 private:
  cutlass::FastDivmod rows_of_sample_;
};

using EpilogueOfSamples = EpilogueOf<ScaleOfSample>;
using Dense = MainloopBeside<EpilogueOfSamples>;
using OfWindows = conv::collective::CollectiveConv<
    conv::MainloopSm90TmaGmmaWarpSpecializedImplicitGemm<
        conv::Operator::kFprop, Dense::DispatchPolicy::Stages, Geometry::RankS, Cluster>,
    Shape<Int<TE_INT8_TILE_M>, Int<TE_INT8_TILE_N>, Shape<Int<TE_INT8_TILE_K>>>, int8_t, int8_t, typename Dense::TiledMma,
    conv::collective::detail::Sm90ImplicitGemmTileTraits<cute::SM90_TMA_LOAD_IM2COL, typename Dense::SmemLayoutA>,
    conv::collective::detail::Sm90ImplicitGemmTileTraits<typename Dense::GmemTiledCopyB, typename Dense::SmemLayoutB>>;

/// CUTLASS's convolutions run in kernels that compute one tile and end. This one looks like a product's mainloop, so that the
/// persistent kernels take it; their problem is [M, N, (C, S, R), 1].
class Windows : public OfWindows {
 public:
  struct DispatchPolicy : OfWindows::DispatchPolicy {
    using Schedule = kernels::Schedule;
  };
  using StrideA = typename Dense::StrideA;  // what the adapter names layouts by
  using StrideB = typename Dense::StrideB;
  using TransformA = cute::identity;
  using TransformB = cute::identity;
  enum : uint32_t { NumProducerThreadEvents = 1 };

  struct Arguments {
    Geometry geometry;
    typename OfWindows::Arguments codes;
  };

  template <typename Problem>
  static constexpr typename OfWindows::Params to_underlying_arguments(
      const Problem&, const Arguments& arguments, void* workspace) {
    return OfWindows::to_underlying_arguments(arguments.geometry, arguments.codes, workspace);
  }
  template <typename Problem>
  static bool can_implement(const Problem&, const Arguments& arguments) {
    return OfWindows::can_implement(arguments.geometry, arguments.codes);
  }

  // The kernels ask b's tiles for a fifth mode, the batch.
  template <typename Problem>
  CUTLASS_DEVICE auto load_init(const Problem& problem, const typename OfWindows::Params& params) {
    const auto [a, b] = OfWindows::load_init(problem, params);
    return cute::make_tuple(a, make_tensor(b.data(), append<5>(b.layout(), Layout<_1, _0>{})));
  }
  template <typename Inputs, typename Block, typename Steps>
  CUTLASS_DEVICE void load(
      const typename OfWindows::Params& params, typename OfWindows::MainloopPipeline pipeline,
      typename OfWindows::PipelineState state, const Inputs& inputs, const Block& block, Steps step, int steps, int thread,
      uint32_t block_rank_in_cluster, typename OfWindows::TensorStorage& storage) {
    OfWindows::load(
        params, pipeline, state, cute::make_tuple(get<0>(inputs), get<1>(inputs)(_, _, _, _, _0{})), block, step, steps,
        thread, block_rank_in_cluster, storage);
  }
};

using Kernel = cutlass::gemm::kernel::GemmUniversal<
    Shape<int, int, Shape<int, int, int>, int>, Windows, EpilogueOfSamples>;

cudaError_t launch(const Product& product, const Gemm& how, int sms, cudaStream_t stream) {
  const auto& g = *product.windows;
  const auto of = [](int64_t value) { return static_cast<int>(value); };
  const auto spatial = [&](const int64_t (&values)[3]) {
    return typename Geometry::SpatialExtent{of(values[1]), of(values[2])};
  };
  const auto m = of(product.m), n = of(product.n), c = of(g.group_channels), r = of(g.window[1]), s = of(g.window[2]);
  const Geometry geometry(
      conv::Mode::kCrossCorrelation, {of(g.samples), of(g.size[1]), of(g.size[2]), c},
      {g.size[1] * g.size[2] * g.channels, g.size[2] * g.channels, g.channels, 1}, {n, r, s, c},
      {int64_t{r} * s * c, int64_t{s} * c, c, 1}, spatial(g.padding), spatial(g.padding), spatial(g.stride),
      spatial(g.dilation), 1);
  const auto& scales = product.epilogue;
  const auto rows_of_sample = of(g.positions[1] * g.positions[2]);
  return launch_kernel<Kernel>(
      {cutlass::gemm::GemmUniversalMode::kGemm,
       {m, n, {c, s, r}, 1},
       {geometry, {product.a + g.first_channel, product.b}},
       {{{scales.b_scales, 1.0F, scale_strides<ColumnScales>(scales.b_step)},
         {{{scales.a_scales, 1.0F, scale_strides<RowScales>(scales.a_step)}, rows_of_sample}, {}, {}},
         {scales.bias, scales.bias_type},
         {}},
        nullptr,
        {},
        static_cast<Out*>(product.out),
        cutlass::make_cute_packed_stride(typename EpilogueOfSamples::StrideD{}, {m, n, 1})}},
      how, sms, stream);
}

const bool registered = register_gemm(
    {.name = "windows " TE_INT8_NAME, .fewest_rows = 1, .most_rows = kAnyRows, .launch = launch, .windows = true});

}  // namespace
}  // namespace te_int8::kernels
