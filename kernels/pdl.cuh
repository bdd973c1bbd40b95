// Programmatic dependent launch: a kernel starts while the one before it in the stream still runs, and waits before it
// reads what that one writes. On GPUs before Hopper nothing of it happens.
#pragma once

#include <atomic>
#include <cstdint>

#include <cuda_runtime.h>

namespace te_int8::kernels {

/// The next kernel may start, if it was launched by launch_after_producer. It waits for the end of this one.
__device__ inline void let_consumer_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Waits until the kernel before this one has ended and its writes can be seen.
__device__ inline void wait_for_producer() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Harmless also where the memory is still being written: the L2 cache is what all writes go through.
__device__ inline void prefetch_into_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/// Whether the image of a kernel for the current device has these instructions: one for an older GPU has not, on
/// whichever GPU it runs. Asked once per kernel and device.
template <auto kKernel>
bool can_wait() {
  constexpr int kDevices = 64;
  static std::atomic<signed char> known[kDevices];  // 0: not asked yet, 1: yes, -1: no
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  if (known[device] == 0) {
    cudaFuncAttributes attributes{};
    const bool can = cudaFuncGetAttributes(&attributes, kKernel) == cudaSuccess && attributes.ptxVersion >= 90;
    known[device] = can ? 1 : -1;
  }
  return known[device] > 0;
}

/// Launches a kernel that calls wait_for_producer before it reads what the kernel before it may write, and before it
/// writes what that one may read.
template <auto kKernel, typename... Arguments>
cudaError_t launch_after_producer(dim3 grid, dim3 block, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = can_wait<kKernel>() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kKernel, arguments...);
}

}  // namespace te_int8::kernels
