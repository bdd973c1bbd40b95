// What the CUDA back ends share: which of them is in force, and the stream that a tensor's work goes to.
#pragma once

#include <ATen/TensorSubclassLikeUtils.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/types.h>

#include <te_int8/backends.h>

#include "../../kernels/gemm.h"
#include "../../kernels/types.h"

namespace te_int8::cuda {

/// 90 for a current device of compute capability 9.0.
int capability();

/// Multiprocessors of the current device.
int multiprocessors();

/// Whether a kernel is for GPUs of that compute capability.
inline bool is_for(const kernels::Gemm& gemm, int capability) {
  return gemm.oldest <= capability && capability <= gemm.newest;
}

/// Why a back end for CUDA cannot be used on the current device; empty where it can.
std::string obstacle_to(te_int8::detail::Backend backend);

/// Asked for the reference, or where this build has no code for the current device, these back ends leave a tensor of
/// a GPU to it.
bool leave_to_reference();

/// Makes the device of `x` the current one; its current stream takes the work.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const at::Tensor& x)
      : guard_(x.device()), stream_(c10::cuda::getCurrentCUDAStream(x.device().index())) {}
  cudaStream_t stream() const { return stream_; }

 private:
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

/// Of float, half or bfloat16.
inline kernels::Type type_of(at::ScalarType type) {
  return type == at::kHalf ? kernels::Type::Half
                           : type == at::kBFloat16 ? kernels::Type::BFloat16 : kernels::Type::Float;
}

/// Whether the memory of x holds its values as they are: the dispatcher sees to all else, and is not always asked.
inline bool is_plain(const at::Tensor& x) { return !at::isTensorSubclassLike(x) && !x.is_neg() && !x._is_zerotensor(); }

/// x without gaps, in a type that kernels read: the number format rounds double to float first.
inline at::Tensor dense(const at::Tensor& x) {
  return (x.scalar_type() == at::kDouble ? x.to(at::kFloat) : x).contiguous();
}

}  // namespace te_int8::cuda
