// What is found out once for each device.
#pragma once

#include <atomic>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace te_int8::kernels {

/// A yes or no for each device, asked when it is wanted there first. Threads that come together may all ask.
class PerDevice {
 public:
  /// What `ask()` says, for the current device.
  template <typename Ask>
  bool operator()(const Ask& ask) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return ask();
    if (known_[device] == kUnknown) known_[device] = ask() ? kYes : kNo;
    return known_[device] == kYes;
  }

 private:
  static constexpr int kDevices = 64;
  enum Answer : int8_t { kUnknown, kYes, kNo };
  std::atomic<Answer> known_[kDevices] = {};
};

/// Tells the current device, once, that a kernel takes so many bytes of dynamic shared memory; false where it has not
/// as many.
template <auto kKernel>
bool allow_shared_memory(int bytes) {
  static PerDevice allowed;
  return allowed([&] {
    const auto error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) cudaGetLastError();  // told by the result
    return error == cudaSuccess;
  });
}

}  // namespace te_int8::kernels
