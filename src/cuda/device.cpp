#include "device.h"

#include <algorithm>

#include <ATen/cuda/CUDAContextLight.h>

#include "../../kernels/dequantize.h"
#include "../../kernels/per_device.h"

namespace te_int8::cuda {

int capability() {
  const auto* device = at::cuda::getCurrentDeviceProperties();
  return 10 * device->major + device->minor;
}

int multiprocessors() { return at::cuda::getCurrentDeviceProperties()->multiProcessorCount; }

namespace {

/// Whether kernels of this build run on the current device.
bool has_code() {
  static kernels::PerDevice known;
  return known(kernels::has_code_for_device);
}

}  // namespace

bool leave_to_reference() {
  return detail::current_backend() == detail::Backend::Reference || !has_code();
}

std::string obstacle_to(detail::Backend backend) {
  const int device = capability();
  const auto none = [&](const char* what) {
    return std::string("te_int8 was built without ") + what + " for compute capability " + std::to_string(device / 10) +
           "." + std::to_string(device % 10);
  };
  if (!has_code()) return none("code");
  if (backend != detail::Backend::Cutlass) return "";
#ifndef TE_INT8_WITH_CUTLASS
  return "te_int8 was built without CUTLASS";
#else
  const bool found = std::ranges::any_of(kernels::gemms(), [&](const kernels::Gemm& gemm) {
    return is_for(gemm, device) && gemm.most_rows == kernels::kAnyRows && !gemm.accumulates;
  });
  return found ? "" : none("CUTLASS kernels");
#endif
}

}  // namespace te_int8::cuda
