// What is found out once for each device.
#pragma once

#include <atomic>
#include <cstdint>

#include <cuda_runtime.h>

namespace te_int8::kernels {

/// A yes or no for each device, found out when it is wanted there first, for good. Threads that come together may all ask.
class PerDevice {
 public:
  /// What `ask()` says, for the current device.
  template <typename Ask>
  bool operator()(const Ask& ask) {
    auto* known = of_current();
    if (known == nullptr) return ask();
    if (*known == kUnknown) *known = ask() ? kYes : kNo;
    return *known == kYes;
  }

  /// Does something until it has succeeded, for the current device.
  template <typename Do>
  cudaError_t once(const Do& something) {
    auto* done = of_current();
    if (done != nullptr && *done == kYes) return cudaSuccess;
    const auto error = something();
    if (done != nullptr && error == cudaSuccess) *done = kYes;
    return error;
  }

 private:
  static constexpr int kDevices = 64;
  enum Answer : int8_t { kUnknown, kYes, kNo };

  std::atomic<Answer>* of_current() {
    int device = 0;
    return cudaGetDevice(&device) == cudaSuccess && device < kDevices ? &of_device_[device] : nullptr;
  }

  std::atomic<Answer> of_device_[kDevices] = {};
};

/// Tells the current device that a kernel takes so many bytes of dynamic shared memory.
template <auto kKernel>
cudaError_t allow_shared_memory(int bytes) {
  static PerDevice told;
  return told.once([&] { return cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); });
}

/// Whether the image of a kernel for the current device is of at least this architecture (80, 90): one for an older GPU
/// may run there too, and lacks what was compiled for later ones only.
template <auto kKernel, int kArchitecture>
bool has_image_of() {
  static PerDevice known;
  return known([] {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, kKernel) == cudaSuccess && attributes.ptxVersion >= kArchitecture;
  });
}

}  // namespace te_int8::kernels
