// What tests watch: calls of operations, warnings, memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/te_int8.h>

#include "test_device.h"

namespace te_int8_test {

using torch::Tensor;

/// Counts calls of operations of te_int8: it sits on a dispatch key of LibTorch's for tests, which a TestDevice opens.
/// (at::RecordFunction shows no inputs where the test and LibTorch differ in NDEBUG.)
class OperationCounter {
 public:
  /// Those of `operation` while f runs, in all threads that have the key: in its backwards too.
  static int calls(const std::string& operation, const std::function<void()>& f) {
    const auto& counted = count_of(operation);
    const TestDevice key;
    const int before = counted;
    f();
    return counted - before;
  }

  /// How often an operation that has been named here was called.
  static const std::atomic<int>& count_of(const std::string& operation) {
    static torch::Library ours(torch::Library::IMPL, "te_int8", kTestKey, __FILE__, __LINE__);
    const auto [counted, is_new] = counts().try_emplace("te_int8::" + operation, 0);
    if (is_new) ours.impl(operation.c_str(), torch::CppFunction::makeFromBoxedFunction<&count>());
    return counted->second;
  }

  /// Is told of the calling thread's calls of those: the name, and the first argument.
  using Listener = std::function<void(const std::string& operation, const Tensor& first)>;
  static Listener& listener() {
    static thread_local Listener of_thread;
    return of_thread;
  }

 private:
  static std::map<std::string, std::atomic<int>>& counts() {
    static std::map<std::string, std::atomic<int>> all;
    return all;
  }
  static void count(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    ++counts().at(op.schema().name());
    if (listener()) listener()(op.schema().name(), torch::jit::peek(*stack, 0, op.schema().arguments().size()).toTensor());
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kTestKey), stack);
  }
};

/// Counts the quantizations of the calling thread by the memory that they read.
class QuantizationCounter {
 public:
  QuantizationCounter() {
    for (const auto* operation : {"quantize_rows", "quantize_columns"}) OperationCounter::count_of(operation);
    OperationCounter::listener() = [this](const std::string& operation, const Tensor& x) {
      if (operation == "te_int8::quantize_rows" || operation == "te_int8::quantize_columns") ++counts_[x.const_data_ptr()];
    };
  }
  ~QuantizationCounter() { OperationCounter::listener() = nullptr; }
  QuantizationCounter(const QuantizationCounter&) = delete;
  QuantizationCounter& operator=(const QuantizationCounter&) = delete;

  int of(const Tensor& tensor) const {
    const auto found = counts_.find(tensor.const_data_ptr());
    return found == counts_.end() ? 0 : found->second;
  }

 private:
  TestDevice key_;
  std::map<const void*, int> counts_;
};

/// Catches LibTorch's warnings while it lives.
struct Warnings : c10::WarningHandler {
  void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }
  bool tell_of(const std::string& what) const {
    return std::ranges::any_of(messages, [&](const std::string& message) { return message.find(what) != std::string::npos; });
  }
  std::vector<std::string> messages;
  c10::WarningUtils::WarningHandlerGuard guard{this};
};

/// What tensors take on the tests' device.
inline int64_t bytes_in_use() {
  const auto device = test_device();
  const auto index = static_cast<c10::DeviceIndex>(std::max<int>(device.index(), 0));
  return c10::getDeviceAllocator(device.type())->getDeviceStats(index).allocated_bytes[0].current;
}

/// The most that they take while f runs.
inline int64_t peak_of(const std::function<void()>& f) {
  const auto device = test_device();
  const auto index = static_cast<c10::DeviceIndex>(std::max<int>(device.index(), 0));
  auto* allocator = c10::getDeviceAllocator(device.type());
  allocator->resetPeakStats(index);
  f();
  return allocator->getDeviceStats(index).allocated_bytes[0].peak;
}

/// The number of weights whose codes are held.
inline std::size_t held_codes() { return te_int8::detail::WeightCodeCache::instance().size(); }

/// Writes one value past LibTorch's knowledge, as a raw pointer does.
inline void poke(const Tensor& tensor, int64_t index, float value) {
  const torch::NoGradGuard no_grad;
  auto* place = static_cast<float*>(tensor.data_ptr()) + index;
  torch::from_blob(place, {1}, tensor.options().requires_grad(false)).fill_(value);
}

}  // namespace te_int8_test
