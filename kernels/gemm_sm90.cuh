// What the products on Hopper (gemm_sm90.cu, convolution_sm90.cu) share: CUTLASS's types of a tile, its epilogue with scales,
// bias and cast, and its launch. For files that CMake compiles once per tile and output type, which it gives:
//
//   TE_INT8_OUT              float32, half or bfloat16
//   TE_INT8_TILE_M, _N, _K   of a block
//   TE_INT8_CLUSTER_M, _N    blocks that share what they load
//   TE_INT8_COOPERATIVE      two warpgroups on one tile, else on two in turn (pingpong)
//   TE_INT8_SWAPPED          the transposed product b a^T, for few rows of a: wgmma wants at least 64 on its left side
//   TE_INT8_ACCUMULATES      adds to what `out` holds
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "epilogue.cuh"
#include "gemm_registry.h"
#include "gemm_types.cuh"
#include "per_device.h"

namespace te_int8::kernels {
namespace {

using namespace cute;  // NOLINT: CUTLASS is unreadable without
namespace fusion = cutlass::epilogue::fusion;

using Out = outputs::TE_INT8_OUT;

using Tile = Shape<Int<TE_INT8_TILE_M>, Int<TE_INT8_TILE_N>, Int<TE_INT8_TILE_K>>;
using Cluster = Shape<Int<TE_INT8_CLUSTER_M>, Int<TE_INT8_CLUSTER_N>, _1>;
constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;

// Names are of the product a b^T: columns are b's. Swapped, they are the rows of CUTLASS's tile.
#if TE_INT8_SWAPPED
template <typename Stride>
using ByColumn = fusion::Sm90ColBroadcast<0, Tile, float, float, Stride>;
template <typename Stride>
using ByRow = fusion::Sm90RowBroadcast<0, Tile, float, float, Stride>;
using OneColumn = Stride<_1, _0, _0>;
using ColumnScales = Stride<bool, _0, _0>;
using RowScales = Stride<_0, bool, _0>;
#else
template <typename Stride>
using ByColumn = fusion::Sm90RowBroadcast<0, Tile, float, float, Stride>;
template <typename Stride>
using ByRow = fusion::Sm90ColBroadcast<0, Tile, float, float, Stride>;
using OneColumn = Stride<_0, _1, _0>;
using ColumnScales = Stride<_0, bool, _0>;
using RowScales = Stride<bool, _0, _0>;
#endif

/// What CUTLASS asks the host about a node of the epilogue that takes any problem and no memory.
struct NodeWithoutWorkspace {
  template <typename Problem, typename Arguments>
  static bool can_implement(const Problem&, const Arguments&) { return true; }
  template <typename Problem, typename Arguments>
  static std::size_t get_workspace_size(const Problem&, const Arguments&) { return 0; }
  template <typename Problem, typename Arguments>
  static cutlass::Status initialize_workspace(
      const Problem&, const Arguments&, void*, cudaStream_t, cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }
};

/// A bias of any type, one value a column. CUTLASS's broadcasts bring values of one type; this one converts them on
/// the way.
class Bias : public ByColumn<OneColumn>, private NodeWithoutWorkspace {
  using Base = ByColumn<OneColumn>;

 public:
  struct Arguments {
    const void* values = nullptr;
    Type type = Type::Float;
  };
  struct Params {
    typename Base::Params base;
    Type type;
  };

  template <typename Problem>
  static constexpr Params to_underlying_arguments(const Problem&, const Arguments& arguments, void*) {
    // Elements of the base are addressed, not read.
    return {{static_cast<const float*>(arguments.values), kNoBias, {}}, arguments.type};
  }
  using NodeWithoutWorkspace::can_implement, NodeWithoutWorkspace::get_workspace_size, NodeWithoutWorkspace::initialize_workspace;

  CUTLASS_HOST_DEVICE Bias() {}
  CUTLASS_HOST_DEVICE Bias(const Params& params, const typename Base::SharedStorage& storage)
      : Base(params.base, storage), type_(params.type) {}

  template <typename Callbacks>
  struct Converting : Callbacks {
    Type type;
    CUTLASS_DEVICE Converting(const Callbacks& callbacks, Type t) : Callbacks(callbacks), type(t) {}

    CUTLASS_DEVICE void begin() {
#if TE_INT8_SWAPPED  // into registers
      const float* first = this->params.ptr_col;
      if (first == nullptr) return;
      auto from = filter_zeros(this->tCgCol);
      auto to = filter_zeros(this->tCrCol);
      auto place = filter_zeros(this->tCcCol, this->tCgCol.stride());
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < size(from); ++i) {
        const bool inside = elem_less(place(i), this->residue_tCcCol);
        to(i) = inside ? bias_value(first, type, &from(i) - first) : 0.0F;
      }
#else  // into shared memory
      const float* first = this->params.ptr_row;
      auto from = filter_zeros(this->tGS_gRow);
      auto to = filter_zeros(this->tGS_sRow);
      auto place = filter_zeros(this->tGS_cRow, this->tGS_gRow.stride());
      for (int i = 0; i < size(from); ++i) {
        if (get<1>(place(i)) >= size<1>(Tile{})) continue;
        const bool inside = first != nullptr && elem_less(place(i), this->residue_cRow);
        to(i) = inside ? bias_value(first, type, &from(i) - first) : this->params.null_default;
      }
#endif
    }
  };

  template <bool kReferenceSource, typename... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::detail::ConsumerStoreArgs<Args...>& args) {
    auto callbacks = Base::template get_consumer_store_callbacks<kReferenceSource>(args);
    return Converting<decltype(callbacks)>(callbacks, type_);
  }

 private:
  Type type_ = Type::Float;
};

#if TE_INT8_ACCUMULATES
using Source = Out;
using Added = fusion::Sm90SrcFetch<Source>;
#else
using Source = void;
using Added = Bias;
#endif
/// fma(b_scale, float(sum) * a_scale, bias, or what is there); `ScaleOfRow` gives a_scale.
template <typename ScaleOfRow>
using Formula = fusion::Sm90EVT<
    fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Out, float, kRound>, ByColumn<ColumnScales>,
    fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>, ScaleOfRow, fusion::Sm90AccFetch>, Added>;

/// A stride of bool is one scale for all, or one each.
template <typename Strides>
Strides scale_strides(int64_t step) {
  return transform(Strides{}, [&](auto stride) {
    if constexpr (is_same_v<decltype(stride), bool>) return step != 0;
    else return stride;
  });
}

#if TE_INT8_COOPERATIVE
using Schedule = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using EpilogueSchedule = cutlass::epilogue::TmaWarpSpecializedCooperative;
#define TE_INT8_SCHEDULE_NAME "cooperative"
#else
using Schedule = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using EpilogueSchedule = cutlass::epilogue::TmaWarpSpecialized;
#define TE_INT8_SCHEDULE_NAME "pingpong"
#endif
/// "pingpong 128x128 c2x1"
#define TE_INT8_NAME                                                                                                \
  TE_INT8_SCHEDULE_NAME " " TE_INT8_VALUE(TE_INT8_TILE_M) "x" TE_INT8_VALUE(TE_INT8_TILE_N) " c" TE_INT8_VALUE( \
      TE_INT8_CLUSTER_M) "x" TE_INT8_VALUE(TE_INT8_CLUSTER_N)

#if TE_INT8_SWAPPED
using OutLayout = cutlass::layout::ColumnMajor;
#else
using OutLayout = cutlass::layout::RowMajor;
#endif

constexpr int kOutAlignment = 16 / sizeof(Out);
template <typename ScaleOfRow>
using EpilogueOf = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
    cutlass::epilogue::collective::EpilogueTileAuto, int32_t, float, Source, OutLayout, kOutAlignment, Out, OutLayout,
    kOutAlignment, EpilogueSchedule, Formula<ScaleOfRow>>::CollectiveOp;
template <typename Epilogue>
using MainloopBeside = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, cutlass::layout::RowMajor, 16, int8_t,
    cutlass::layout::ColumnMajor, 16, int32_t, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
    Schedule>::CollectiveOp;

template <typename Kernel>
cudaError_t launch_kernel(typename Kernel::Arguments arguments, const Gemm& how, int sms, cudaStream_t stream) {
  const auto allowed = allow_shared_memory<cutlass::device_kernel<Kernel>>(Kernel::SharedStorageSize);
  if (allowed != cudaSuccess) return allowed;
  arguments.hw_info.sm_count = sms;
  arguments.scheduler.max_swizzle_size = how.swizzle;
  using Order = cutlass::gemm::kernel::detail::RasterOrderOptions;
  arguments.scheduler.raster_order = how.along_m != static_cast<bool>(TE_INT8_SWAPPED) ? Order::AlongM : Order::AlongN;
  auto params = Kernel::to_underlying_arguments(arguments, nullptr);
  constexpr bool kAfterProducer = true;  // see pdl.cuh
  using Adapter = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  if (Adapter::run(params, stream, nullptr, kAfterProducer) != cutlass::Status::kSuccess) {
    const auto error = cudaGetLastError();
    return error == cudaSuccess ? cudaErrorInvalidValue : error;
  }
  return cudaGetLastError();
}

/// Makes this file's kernel known, once for each order of tiles that is worth a try.
bool register_gemm(Gemm gemm) {
  gemm.oldest = gemm.newest = 90;
  gemm.type = kTypeOf<Out>;
  for (const bool along_m : {false, true}) {
    for (const int swizzle : {1, 2, 4, 8}) {
      if (TE_INT8_SWAPPED && (along_m || swizzle > 1)) continue;  // one column of tiles has but one order
      gemm.along_m = along_m;
      gemm.swizzle = swizzle;
      gemm_registry().push_back(gemm);
    }
  }
  return true;
}

}  // namespace
}  // namespace te_int8::kernels
