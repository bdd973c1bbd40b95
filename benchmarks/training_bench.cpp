// Steps of training on a GPU, forward and backward: bf16 beside the recipes in the same run, in time and in memory.
//
//   te_int8_bench --benchmark_filter=Train --benchmark_repetitions=9 --benchmark_enable_random_interleaving=true
//
// The GPU is kept busy, so the clock is the one that its power limit leaves ("hot"). The weights change before each step:
// making their codes is counted. Bytes held are those between forward and backward, without codes of weights; the peak is
// that of a whole step with everything in it, the model itself and its gradients included.
#include <algorithm>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/torch.h>

#include <te_int8/te_int8.h>

#include "../examples/train_text/gpt.h"

namespace {

namespace nn = torch::nn;
using te_int8::AutocastGuard, te_int8::Mode, te_int8::Recipe;

struct FeedForwardImpl : nn::Module {
  FeedForwardImpl(int64_t width, int64_t hidden)
      : norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({width})))),
        fc1(register_module("fc1", nn::Linear(width, hidden))),
        fc2(register_module("fc2", nn::Linear(hidden, width))) {}
  at::Tensor forward(const at::Tensor& x) { return x + fc2(at::gelu(fc1(norm(x)), "tanh")); }
  nn::LayerNorm norm;
  nn::Linear fc1, fc2;
};
TORCH_MODULE(FeedForward);

/// A model, what it is given, and what is called on it.
struct Work {
  std::shared_ptr<nn::Module> model;
  std::vector<int64_t> input;
  std::function<at::Tensor(const at::Tensor&)> forward;
};

Work linear() {
  nn::Linear layer(4096, 4096);
  return {layer.ptr(), {8192, 4096}, [layer](const at::Tensor& x) mutable { return layer(x); }};
}

Work feed_forward() {
  FeedForward layer(4096, 16384);
  return {layer.ptr(), {8192, 4096}, [layer](const at::Tensor& x) mutable { return layer(x); }};
}

Work blocks() {
  const train_text::GptConfig config{.layers = 4, .width = 2048, .heads = 16, .context = 1024};
  nn::Sequential layers;
  for (int64_t i = 0; i < config.layers; ++i) layers->push_back(train_text::Block(config));
  return {layers.ptr(), {8, config.context, config.width}, [layers](const at::Tensor& x) mutable { return layers->forward(x); }};
}

class Step {
 public:
  /// `later`: than the first micro-batch of an optimizer's step.
  Step(Work work, bool later) : work_(std::move(work)), later_(later) {
    work_.model->to(torch::kCUDA, torch::kBFloat16);
    const auto options = torch::TensorOptions(torch::kCUDA).dtype(torch::kBFloat16);
    x_ = torch::randn(work_.input, options).requires_grad_();
    dy_ = torch::randn(work_.input, options);
  }

  nn::Module& model() { return *work_.model; }
  at::Tensor forward() { return work_.forward(x_); }
  void backward(const at::Tensor& y) { y.backward(dy_); }
  void run() { backward(forward()); }

  /// A code for each weight and a scale for each of its rows.
  double bytes_of_weight_codes() {
    double bytes = 0;
    for (const auto& parameter : work_.model->parameters()) {
      if (parameter.dim() == 2) bytes += static_cast<double>(parameter.numel() + 4 * parameter.size(0));
    }
    return bytes;
  }

  /// As an optimizer leaves it, weights written, no gradients; or as an earlier micro-batch does.
  void renew() {
    x_.mutable_grad().reset();
    if (later_) return;
    const torch::NoGradGuard no_grad;
    for (auto& parameter : work_.model->parameters()) parameter.mul_(1);
    work_.model->zero_grad();
  }

 private:
  Work work_;
  bool later_;
  at::Tensor x_, dy_;
};

/// Bytes of the allocator that are in use now, and at most since `reset`.
struct Memory {
  explicit Memory(c10::Device device)
      : index(device.index()), allocator(*c10::getDeviceAllocator(device.type())) {}
  double now() const { return static_cast<double>(bytes().current); }
  double peak() const { return static_cast<double>(bytes().peak); }
  void reset() const { allocator.resetPeakStats(index); }

 private:
  c10::CachingAllocator::Stat bytes() const { return allocator.getDeviceStats(index).allocated_bytes[0]; }
  c10::DeviceIndex index;
  c10::DeviceAllocator& allocator;
};

using MakeWork = Work (*)();
using MakeRecipe = Recipe (*)();

/// Where TE_INT8_BENCH_TRACES names a folder: what runs on the GPU meanwhile, for kernels.py.
class Trace {
 public:
  explicit Trace(std::string name) : name_(std::move(name)) {
    std::ranges::replace(name_, '/', '_');
    if (folder() == nullptr) return;
    const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
    const std::set<torch::profiler::impl::ActivityType> activities{torch::profiler::impl::ActivityType::CUDA};
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities);
  }
  ~Trace() {
    if (folder() != nullptr) torch::autograd::profiler::disableProfiler()->save(std::string(folder()) + "/" + name_ + ".json");
  }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

 private:
  static const char* folder() { return std::getenv("TE_INT8_BENCH_TRACES"); }
  std::string name_;
};

/// `recipe` null: in bf16.
void train(benchmark::State& state, const std::string& name, MakeWork make, MakeRecipe recipe, bool later) {
  if (!torch::cuda::is_available()) {
    state.SkipWithError("needs a GPU");
    return;
  }
  constexpr int kSteps = 30, kBusySteps = 10, kTracedSteps = 3;
  const c10::impl::VirtualGuardImpl gpu(c10::DeviceType::CUDA);
  const auto device = gpu.getDevice();
  Step step(make(), later);
  std::optional<AutocastGuard> guard;
  if (recipe != nullptr) guard.emplace(step.model(), Mode::QAT, recipe());
  for (int i = 0; i < 2; ++i) {  // kernels are chosen
    step.run();
    step.renew();
  }

  const Memory memory(device);
  memory.reset();
  step.run();
  state.counters["peak MB"] = memory.peak() * 1e-6;
  step.renew();
  te_int8::refresh(step.model());  // nothing is left of former steps
  {
    const auto before = memory.now();
    const auto y = step.forward();
    const double weight_codes = recipe == nullptr ? 0 : step.bytes_of_weight_codes();
    state.counters["held MB"] = (memory.now() - before - static_cast<double>(y.nbytes()) - weight_codes) * 1e-6;
  }

  for (auto _ : state) {
    std::deque<std::pair<c10::Event, c10::Event>> steps;
    for (int i = 0; i < kBusySteps + kSteps; ++i) {
      step.renew();
      const auto stream = gpu.getStream(device);
      auto& [begin, end] = steps.emplace_back(
          c10::Event(device.type(), c10::EventFlag::BACKEND_DEFAULT), c10::Event(device.type(), c10::EventFlag::BACKEND_DEFAULT));
      begin.record(stream);
      step.run();
      end.record(stream);
    }
    gpu.synchronizeDevice(device.index());
    double ms = 0;
    for (int i = 0; i < kSteps; ++i) ms += steps[kBusySteps + i].first.elapsedTime(steps[kBusySteps + i].second);
    state.SetIterationTime(ms * 1e-3 / kSteps);
  }
  const Trace trace(name);
  for (int i = 0; i < kTracedSteps; ++i) {
    step.renew();
    step.run();
  }
  gpu.synchronizeDevice(device.index());
}

const bool registered = [] {
  const std::pair<const char*, MakeWork> works[] = {{"Linear", linear}, {"FeedForward", feed_forward}, {"Blocks", blocks}};
  const std::pair<const char*, MakeRecipe> recipes[] = {
      {"bf16", nullptr},
      {"qat", Recipe::qat},
      {"switchback", Recipe::switchback},
      {"int8", Recipe::int8_training},
      {"int8_small", [] { return Recipe::int8_training().preactivations(te_int8::Precision::Int8); }}};
  for (const auto& [work, make] : works) {
    for (const auto& [name, recipe] : recipes) {
      for (const bool later : {false, true}) {
        const auto full_name = std::string(later ? "LaterMicroBatch" : "Train") + work + "/" + name;
        benchmark::RegisterBenchmark(full_name.c_str(), [=, make = make, recipe = recipe](benchmark::State& state) {
          train(state, full_name, make, recipe, later);
        })->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(1);
      }
    }
  }
  return true;
}();

}  // namespace
