// Programmatic dependent launch: a kernel starts while the one before it in the stream still runs, and waits before it
// reads what that one writes. On GPUs before Hopper nothing of it happens.
#pragma once

#include <cuda_runtime.h>

#include "per_device.h"

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

/// Waits for the kernel before this one, and then lets the next one start, unless blocks are so many that its head start costs them
/// more than it gains. In this order: a consumer that came before the producer has ended would be given what that one leaves free,
/// and its blocks would share multiprocessors unevenly (codes and product of 16 x 4096 x 4096 on an H200: 9.8 us, and 8.2 so).
__device__ inline void take_over_from_producer() {
  constexpr unsigned kFewBlocks = 1024;
  wait_for_producer();
  if (gridDim.x <= kFewBlocks) let_consumer_start();
}

/// Harmless also where the memory is still being written: the L2 cache is what all writes go through.
__device__ inline void prefetch_into_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes;
  cudaStream_t stream;
};

inline cudaLaunchAttribute start_before_producer_ends() {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  return early;
}

/// Launches a kernel that calls wait_for_producer before it reads what the kernel before it may write, and before it
/// writes what that one may read.
template <auto kKernel, typename... Arguments>
cudaError_t launch_after_producer(const Launch& launch, const Arguments&... arguments) {
  auto early = start_before_producer_ends();
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  config.attrs = &early;
  config.numAttrs = has_image_of<kKernel, 90>() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kKernel, arguments...);
}

}  // namespace te_int8::kernels
