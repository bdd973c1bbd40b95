// What a quantized layer costs the host on a GPU: the time to enqueue its kernels, waiting for none of them.
#include <chrono>
#include <optional>

#include <benchmark/benchmark.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <te_int8/te_int8.h>

namespace {

using te_int8::AutocastGuard, te_int8::Mode;

constexpr int kCalls = 200;  ///< in a row; fewer than the driver queues up

/// `forward` on an input of few rows of 256, whose kernels are shorter than any launch.
template <typename Forward>
void time_enqueueing(benchmark::State& state, const Forward& forward) {
  const c10::impl::VirtualGuardImpl gpu(c10::DeviceType::CUDA);
  const auto wait = [&] { gpu.synchronizeDevice(gpu.getDevice().index()); };
  forward();
  for (auto _ : state) {
    wait();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) forward();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    state.SetIterationTime(elapsed.count());
  }
  state.counters["a call"] =
      benchmark::Counter(kCalls, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  wait();
}

/// range(0): 1 in a scope of Mode::Inference, else in full precision. range(1): dimensions of x. range(2): its rows.
void CudaLinearOnHost(benchmark::State& state) {
  if (!torch::cuda::is_available()) {
    state.SkipWithError("needs a GPU");
    return;
  }
  const torch::NoGradGuard no_grad;
  const auto options = torch::TensorOptions(torch::kCUDA).dtype(torch::kBFloat16);
  torch::nn::Linear layer(256, 256);
  layer->to(torch::kCUDA, torch::kBFloat16);
  const std::vector<int64_t> sizes = state.range(1) == 2 ? std::vector<int64_t>{-1, 256} : std::vector<int64_t>{1, -1, 256};
  const auto x = torch::randn({state.range(2), 256}, options).view(sizes);
  std::optional<AutocastGuard> guard;
  if (state.range(0) == 1) guard.emplace(layer, Mode::Inference);
  time_enqueueing(state, [&] { benchmark::DoNotOptimize(layer->forward(x)); });
}
BENCHMARK(CudaLinearOnHost)->ArgsProduct({{0, 1}, {2, 3}, {1, 16}})->UseManualTime()->Iterations(20);

/// The parts of such a call: what it is made of where the layer has more rows than one kernel takes.
void CudaPartsOnHost(benchmark::State& state) {
  if (!torch::cuda::is_available()) {
    state.SkipWithError("needs a GPU");
    return;
  }
  namespace ops = te_int8::ops;
  const torch::NoGradGuard no_grad;
  const auto options = torch::TensorOptions(torch::kCUDA).dtype(torch::kBFloat16);
  const auto x = torch::randn({16, 256}, options), weight = torch::randn({256, 256}, options), bias = torch::randn({256}, options);
  const auto [codes, scales] = ops::quantize_rows(x);
  const auto [weight_codes, weight_scales] = ops::quantize_rows(weight);
  switch (state.range(0)) {
    case 0: return time_enqueueing(state, [&] { benchmark::DoNotOptimize(at::empty({16, 256}, options)); });
    case 1: return time_enqueueing(state, [&] { benchmark::DoNotOptimize(ops::quantize_rows(x)); });
    case 2: return time_enqueueing(state, [&] {
      benchmark::DoNotOptimize(ops::scaled_mm(codes, weight_codes, scales, weight_scales, bias, at::kBFloat16));
    });
    default: return time_enqueueing(state, [&] {
      benchmark::DoNotOptimize(ops::linear_prequantized(x, weight_codes, weight_scales, bias));
    });
  }
}
BENCHMARK(CudaPartsOnHost)->ArgName("empty_quantize_multiply_linear")->DenseRange(0, 3)->UseManualTime()->Iterations(20);

}  // namespace
