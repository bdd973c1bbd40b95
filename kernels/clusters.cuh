// Launches by clusters of blocks, on GPUs that have them.
#pragma once

#include <cooperative_groups.h>

#include "pdl.cuh"
#include "per_device.h"

namespace te_int8::kernels {

/// A launch by clusters of `blocks` blocks each.
class ClusterLaunch {
 public:
  ClusterLaunch(int blocks, const Launch& launch, bool after_producer = false) {
    attributes_[0].id = cudaLaunchAttributeClusterDimension;
    attributes_[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    attributes_[1] = start_before_producer_ends();
    config_.gridDim = launch.grid;
    config_.blockDim = launch.block;
    config_.dynamicSmemBytes = launch.shared_bytes;
    config_.stream = launch.stream;
    config_.attrs = attributes_;
    config_.numAttrs = after_producer ? 2 : 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // config_ refers to attributes_
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;

  const cudaLaunchConfig_t& config() const { return config_; }

 private:
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_{};
};

template <auto kKernel, typename... Arguments>
cudaError_t launch_clusters(int blocks, const Launch& launch, const Arguments&... arguments) {
  return cudaLaunchKernelEx(&ClusterLaunch(blocks, launch).config(), kKernel, arguments...);
}

/// Of a kernel as launch_after_producer takes.
template <auto kKernel, typename... Arguments>
cudaError_t launch_clusters_after_producer(int blocks, const Launch& launch, const Arguments&... arguments) {
  return cudaLaunchKernelEx(&ClusterLaunch(blocks, launch, /*after_producer=*/true).config(), kKernel, arguments...);
}

/// Whether the current device runs clusters of up to kBlocks blocks of a kernel, which may be more than the 8 that every GPU with
/// clusters runs, with up to kSharedBytes of dynamic shared memory. Prepares the kernel for them.
template <auto kKernel, int kBlocks, int kBlockThreads, int kSharedBytes>
bool runs_in_clusters() {
  static PerDevice known;
  return known([] {
    if (!has_image_of<kKernel, 90>()) return false;
    const ClusterLaunch launch(kBlocks, {kBlocks, kBlockThreads, kSharedBytes, nullptr});
    int clusters = 0;
    const bool runs = allow_shared_memory<kKernel>(kSharedBytes) == cudaSuccess &&
                      cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
                      cudaOccupancyMaxActiveClusters(&clusters, kKernel, &launch.config()) == cudaSuccess && clusters > 0;
    if (!runs) static_cast<void>(cudaGetLastError());  // an answer, which the next launch must not be blamed for
    return runs;
  });
}

}  // namespace te_int8::kernels
