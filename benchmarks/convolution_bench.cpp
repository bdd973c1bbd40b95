// Convolutions 3x3 of ResNet-50's stages: quantized in a scope, dynamic quantization and bias included, beside LibTorch's
// fp32 and bf16 in the same run. On the CPU 8 samples, one input (threads: OMP_NUM_THREADS); on a GPU 64, inputs in turn
// that together are larger than its cache. Arguments: side of the image, channels, whether they are last in memory, and whether
// each is convolved by itself (depthwise).
#include <vector>

#include <benchmark/benchmark.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <te_int8/te_int8.h>

namespace {

namespace nn = torch::nn;
using te_int8::AutocastGuard, te_int8::Mode;

struct Stage {
  Stage(const benchmark::State& state, c10::Device device, at::ScalarType dtype, int64_t samples, int count)
      : layer(nn::Conv2dOptions(state.range(1), state.range(1), 3).padding(1).groups(state.range(3) != 0 ? state.range(1) : 1)) {
    const auto side = state.range(0), channels = state.range(1);
    const auto format = state.range(2) != 0 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    layer->to(device, dtype);
    layer->weight.set_data(layer->weight.contiguous(format));
    for (int i = 0; i < count; ++i) {
      inputs.push_back(torch::randn({samples, channels, side, side}, device).to(dtype).contiguous(format));
    }
    gops = 2e-9 * static_cast<double>(samples * side * side * layer->weight.numel());
  }
  at::Tensor next() {
    place = (place + 1) % inputs.size();
    return layer->forward(inputs[place]);
  }
  nn::Conv2d layer;
  std::vector<at::Tensor> inputs;
  std::size_t place = 0;
  double gops;
};

void on_cpu(benchmark::State& state, at::ScalarType dtype, Mode mode, const te_int8::Recipe& recipe = {}) {
  const torch::NoGradGuard no_grad;
  Stage stage(state, torch::kCPU, dtype, 8, 1);
  const AutocastGuard guard(stage.layer, mode, recipe);
  for (std::size_t i = 0; i < stage.inputs.size(); ++i) stage.next();
  for (auto _ : state) benchmark::DoNotOptimize(stage.next());
  state.counters["GOPS"] = benchmark::Counter(stage.gops, benchmark::Counter::kIsIterationInvariantRate);
}

void on_gpu(benchmark::State& state, bool quantized) {
  if (!torch::cuda::is_available()) {
    state.SkipWithError("needs a GPU");
    return;
  }
  const torch::NoGradGuard no_grad;
  at::globalContext().setBenchmarkCuDNN(true);
  Stage stage(state, torch::kCUDA, at::kBFloat16, 64, 16);
  const AutocastGuard guard(stage.layer, quantized ? Mode::Inference : Mode::Off);
  const c10::impl::VirtualGuardImpl gpu(c10::DeviceType::CUDA);
  const auto wait = [&] { gpu.synchronizeDevice(gpu.getDevice().index()); };
  constexpr int kCalls = 100;
  for (std::size_t i = 0; i < stage.inputs.size(); ++i) stage.next();
  wait();
  for (auto _ : state) {
    for (int i = 0; i < kCalls; ++i) benchmark::DoNotOptimize(stage.next());
    wait();
  }
  state.counters["a call"] = benchmark::Counter(kCalls, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["GOPS"] = benchmark::Counter(kCalls * stage.gops, benchmark::Counter::kIsIterationInvariantRate);
}

void ConvolutionFp32(benchmark::State& state) { on_cpu(state, at::kFloat, Mode::Off); }
void ConvolutionBf16(benchmark::State& state) { on_cpu(state, at::kBFloat16, Mode::Off); }
void ConvolutionInt8(benchmark::State& state) { on_cpu(state, at::kFloat, Mode::Inference); }
/// INT8 or fp32, whichever takes less time.
void ConvolutionFaster(benchmark::State& state) {
  on_cpu(state, at::kFloat, Mode::Inference, te_int8::Recipe().allow_full_precision(true));
}
void CudaConvolutionBf16(benchmark::State& state) { on_gpu(state, false); }
void CudaConvolutionInt8(benchmark::State& state) { on_gpu(state, true); }

void stages(benchmark::internal::Benchmark* b) {
  for (const int64_t depthwise : {0, 1}) {
    for (const int64_t last : {0, 1}) {
      for (const auto& [side, channels] : std::vector<std::pair<int64_t, int64_t>>{{56, 64}, {28, 128}, {14, 256}, {7, 512}}) {
        b->Args({side, channels, last, depthwise});
      }
    }
  }
}
BENCHMARK(ConvolutionFp32)->Apply(stages)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(ConvolutionBf16)->Apply(stages)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(ConvolutionInt8)->Apply(stages)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(ConvolutionFaster)->Apply(stages)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(CudaConvolutionBf16)->Apply(stages)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(10);
BENCHMARK(CudaConvolutionInt8)->Apply(stages)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(10);

}  // namespace
