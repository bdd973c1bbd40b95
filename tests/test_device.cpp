#include "test_device.h"

#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>

#include <ATen/core/dispatch/Dispatcher.h>
#include <catch2/catch_all.hpp>
#include <torch/library.h>

namespace te_int8_test {
namespace {

constexpr int kNothingRun = 4;  // Catch2's exit code for 'every case was skipped'

/// Gives a factory (an operation with a device and without a tensor) the device that it was not given.
void choose_device(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  bool takes_tensors = false;
  std::optional<std::size_t> device;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto& type = *arguments[i].type();
    takes_tensors |= type.isSubtypeOf(*c10::OptionalType::ofTensor()) ||
                     type.isSubtypeOf(*c10::ListType::ofTensors());
    if (arguments[i].name() == "device") device = i;
  }
  if (device && !takes_tensors) {
    auto& value = (*stack)[stack->size() - arguments.size() + *device];
    if (value.isNone()) value = test_device();
  }
  op.redispatchBoxed(
      keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kTestKey), stack);
}

struct UseTestDevice : Catch::EventListenerBase {
  using EventListenerBase::EventListenerBase;
  void testRunStarting(const Catch::TestRunInfo&) override {
    const auto device = test_device();
    if (device.is_cuda() && !torch::cuda::is_available()) {
      std::cout << "skipped: no usable GPU for TE_INT8_TEST_DEVICE=" << device << std::endl;
      std::exit(kNothingRun);
    }
    static const TestDevice of_the_main_thread;
  }
};
CATCH_REGISTER_LISTENER(UseTestDevice)

}  // namespace

c10::Device test_device() {
  static const c10::Device device = [] {
    const char* named = std::getenv("TE_INT8_TEST_DEVICE");
    const c10::Device wanted(named == nullptr ? "cpu" : named);
    // The tests compare with the device of their tensors, which has an index.
    return wanted.is_cuda() && !wanted.has_index() ? c10::Device(wanted.type(), 0) : wanted;
  }();
  return device;
}

TestDevice::TestDevice()
    : mode_([] {
        static torch::Library fallback(torch::Library::IMPL, "_", kTestKey, __FILE__, __LINE__);
        static const bool once = [] {
          fallback.fallback(
              test_device().is_cpu() ? torch::CppFunction::makeFallthrough()
                                     : torch::CppFunction::makeFromBoxedFunction<&choose_device>());
          return true;
        }();
        (void)once;
        return kTestKey;
      }()) {}

}  // namespace te_int8_test
