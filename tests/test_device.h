// The device that the tests run on: the CPU, or the one that TE_INT8_TEST_DEVICE names ("cuda"). While a
// TestDevice lives, its thread's tensors are made there unless they say otherwise.
#pragma once

#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/torch.h>

namespace te_int8_test {

/// LibTorch's dispatch key for modes of tests; OperationCounter sits on it too.
inline constexpr auto kTestKey = c10::DispatchKey::TESTING_ONLY_GenericMode;

c10::Device test_device();

class TestDevice {
 public:
  TestDevice();

 private:
  c10::impl::IncludeDispatchKeyGuard mode_;
};

/// bf16 autocast on the test device, for a block.
class Bf16Autocast {
 public:
  Bf16Autocast() {
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
    at::autocast::set_autocast_enabled(device_, true);
  }
  ~Bf16Autocast() {
    at::autocast::set_autocast_enabled(device_, false);
    at::autocast::clear_cache();
  }
  Bf16Autocast(const Bf16Autocast&) = delete;
  Bf16Autocast& operator=(const Bf16Autocast&) = delete;

 private:
  c10::DeviceType device_ = test_device().type();
};

}  // namespace te_int8_test

/// For cases that are about host memory.
#define SKIP_UNLESS_CPU() \
  if (!te_int8_test::test_device().is_cpu()) SKIP("about host memory; runs on the CPU")

/// For cases that are about kernels of a GPU.
#define SKIP_UNLESS_CUDA() \
  if (!te_int8_test::test_device().is_cuda()) SKIP("about kernels of a GPU; runs where TE_INT8_TEST_DEVICE is cuda")
