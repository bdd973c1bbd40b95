#include <te_int8/detail/stream_stamp.h>

#ifdef TE_INT8_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace te_int8::inline v0::detail {

uint64_t capture_of(c10::Device device) {
#ifdef TE_INT8_WITH_CUDA
  if (device.is_cuda()) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long number = 0;
    C10_CUDA_CHECK(cudaStreamGetCaptureInfo(c10::cuda::getCurrentCUDAStream(device.index()), &status, &number));
    return status == cudaStreamCaptureStatusActive ? number : 0;
  }
#endif
  (void)device;
  return 0;
}

}  // namespace te_int8::inline v0::detail
