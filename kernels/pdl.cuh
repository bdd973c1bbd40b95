// Programmatic dependent launch: a kernel starts while the one before it in the stream still runs, and waits before it
// reads what that one writes. On GPUs before Hopper nothing of it happens.
#pragma once

#include <cstddef>
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

/// The same of many bytes, a multiple of 16, by one thread. From Hopper on; before, nothing happens.
__device__ inline void prefetch_bytes_into_l2(const void* address, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
#endif
}

/// Launches a kernel that calls wait_for_producer before it reads or writes what others may write or read.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_after_producer(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
    const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace te_int8::kernels
