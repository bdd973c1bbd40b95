// What the tests of the guard share: models, what can be seen of a model, and the result that a
// quantized layer has to give, computed without any scope.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/te_int8.h>

#include "support.h"

namespace te_int8_test {

namespace nn = torch::nn;
using te_int8::AutocastGuard;
using te_int8::Mode;
using te_int8::Precision;
using te_int8::Recipe;
using torch::Tensor;

// ---- The result of a quantized layer --------------------------------------------------------------

/// x W^T + b of a layer with one scale per row, from the operations alone.
inline Tensor int8_result(
    const Tensor& x, const Tensor& weight, const Tensor& bias, at::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  const auto [x_codes, x_scales] = te_int8::ops::quantize_rows(x.detach().reshape({rows, x.size(-1)}));
  const auto [w_codes, w_scales] = te_int8::ops::quantize_rows(weight.detach());
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  const auto added = bias.defined() ? std::optional(bias.detach()) : std::nullopt;
  return te_int8::ops::scaled_mm(x_codes, w_codes, x_scales, w_scales, added, dtype).view(sizes);
}
inline Tensor int8_result(const nn::LinearImpl& layer, const Tensor& x) {
  return int8_result(x, layer.weight, layer.bias, x.scalar_type());
}

// ---- Models ---------------------------------------------------------------------------------------

/// Layers as typed members, as most LibTorch programs have them.
struct MlpImpl : nn::Module {
  explicit MlpImpl(int64_t width = 16) {
    fc1 = register_module("fc1", nn::Linear(width, 2 * width));
    fc2 = register_module("fc2", nn::Linear(2 * width, width));
    head = register_module("head", nn::Linear(nn::LinearOptions(width, 4).bias(false)));
  }
  Tensor forward(const Tensor& x) { return head(torch::relu(fc2(torch::relu(fc1(x))))); }
  nn::Linear fc1{nullptr}, fc2{nullptr}, head{nullptr};
};
TORCH_MODULE(Mlp);

/// A model whose only child is one Linear.
struct OneLayerImpl : nn::Module {
  explicit OneLayerImpl(int64_t in = 8, int64_t out = 4) {
    fc = register_module("fc", nn::Linear(in, out));
  }
  Tensor forward(const Tensor& x) { return fc(x); }
  nn::Linear fc{nullptr};
};
TORCH_MODULE(OneLayer);

/// Two Linears that may share what the test lets them share.
struct TwoLayersImpl : nn::Module {
  explicit TwoLayersImpl(int64_t in = 8, int64_t out = 4) {
    first = register_module("first", nn::Linear(in, out));
    second = register_module("second", nn::Linear(in, out));
  }
  nn::Linear first{nullptr}, second{nullptr};
};
TORCH_MODULE(TwoLayers);

// ---- What can be seen of a model ------------------------------------------------------------------

inline std::string saved_bytes(const std::shared_ptr<nn::Module>& model) {
  std::ostringstream stream;
  torch::save(model, stream);
  return stream.str();
}

inline std::string printed(const nn::Module& model) {
  std::ostringstream stream;
  stream << model;
  return stream.str();
}

/// Everything that a scope must put back: the modules by name and identity, the parameters by name,
/// identity, value and requires_grad.
class Snapshot {
 public:
  explicit Snapshot(const nn::Module& model) : modules_(model.named_modules("", false)) {
    for (const auto& item : model.named_parameters()) {
      parameters_.push_back({item.key(), item.value(), item.value().detach().clone()});
      requires_grad_.push_back(item.value().requires_grad());
    }
  }
  bool holds(const nn::Module& model) const { return holds_tree(model) && holds_parameters(model); }
  bool holds_tree(const nn::Module& model) const {
    const auto now = model.named_modules("", false);
    return now.keys() == modules_.keys() && now.values() == modules_.values();
  }
  bool holds_parameters(const nn::Module& model) const {
    const auto now = model.named_parameters();
    if (now.size() != parameters_.size()) return false;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const auto& [name, parameter, values] = parameters_[i];
      if (now[i].key() != name || !now[i].value().is_same(parameter) ||
          parameter.requires_grad() != requires_grad_[i] || !same(parameter.detach(), values)) {
        return false;
      }
    }
    return true;
  }

 private:
  struct Parameter {
    std::string name;
    Tensor parameter, values;
  };
  torch::OrderedDict<std::string, std::shared_ptr<nn::Module>> modules_;
  std::vector<Parameter> parameters_;
  std::vector<bool> requires_grad_;
};

inline te_int8::LayerReport line_of(const te_int8::Report& report, const std::string& name) {
  for (const auto& line : report.layers) {
    if (line.name == name) return line;
  }
  FAIL("no line '" << name << "' in the report");
  return {};
}
inline int64_t calls_of(const AutocastGuard& guard, const std::string& name) {
  return line_of(guard.report(), name).calls;
}
inline int64_t all_calls(const AutocastGuard& guard) {
  int64_t calls = 0;
  for (const auto& line : guard.report().layers) calls += line.calls;
  return calls;
}

// ---- Watching -------------------------------------------------------------------------------------

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

/// Runs f as programs run models: "grad", "no grad", "inference" or "autocast" (to bf16).
template <typename Function>
void in_context(const std::string& context, Function f) {
  if (context == "no grad") {
    const torch::NoGradGuard no_grad;
    f();
  } else if (context == "inference") {
    const c10::InferenceMode inference_mode;
    f();
  } else if (context == "autocast") {
    const Bf16Autocast autocast;
    f();
  } else {
    f();
  }
}

/// Runs f in a thread of its own, to its end; what it throws is thrown here.
template <typename Function>
void in_thread(Function f) {
  std::exception_ptr error;
  std::thread([&] {
    const TestDevice same_device;
    try {
      f();
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
}

}  // namespace te_int8_test
