// Linear layers: a quantized forward on the CPU, and a forward with its backward, dynamic quantization and bias
// included, beside LibTorch's fp32 and bf16 in the same run. Threads: OMP_NUM_THREADS. Rows are M, N, K.
#include <algorithm>
#include <vector>

#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include <te_int8/te_int8.h>

namespace {

using te_int8::AutocastGuard;
using te_int8::Mode;

/// Several layers in turn, so that weights come from memory where together they are larger than the cache.
struct Layers {
  Layers(const benchmark::State& state, at::ScalarType dtype, bool cold) {
    const auto m = state.range(0), n = state.range(1), k = state.range(2);
    constexpr int64_t kBytes = 256 << 20;
    const int64_t count = cold ? std::max<int64_t>(2, kBytes / (n * k)) : 1;
    for (int64_t i = 0; i < count; ++i) {
      layers.emplace_back(k, n);
      model->push_back(layers.back());
    }
    model->to(dtype);
    for (int64_t i = 0; i < count; ++i) inputs.push_back(torch::randn({m, k}).to(dtype));  // else x's codes are shared
  }
  void run(benchmark::State& state) {
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < layers.size(); ++i) layers[i]->forward(inputs[i]);
    std::size_t next = 0;
    for (auto _ : state) {
      benchmark::DoNotOptimize(layers[next]->forward(inputs[next]));
      if (++next == layers.size()) next = 0;
    }
    const auto operations = 2.0 * static_cast<double>(state.range(0) * state.range(1) * state.range(2));
    state.counters["GOPS"] = benchmark::Counter(
        operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  }
  torch::nn::Sequential model;
  std::vector<torch::nn::Linear> layers;
  std::vector<at::Tensor> inputs;
};

bool is_cold(const benchmark::State& state) { return state.range(0) <= 16; }

void LinearFp32(benchmark::State& state) { Layers(state, at::kFloat, is_cold(state)).run(state); }
void LinearBf16(benchmark::State& state) { Layers(state, at::kBFloat16, is_cold(state)).run(state); }
void LinearInt8(benchmark::State& state) {
  Layers layers(state, at::kFloat, is_cold(state));
  const AutocastGuard guard(layers.model, Mode::Inference);
  layers.run(state);
}

/// Forward and backward of a layer whose weight changes before each, as in training, so that making its codes is
/// counted. `train` computes y from x in whichever precision.
template <typename Train>
void step(benchmark::State& state, at::ScalarType dtype, const Train& train) {
  const auto m = state.range(0), n = state.range(1), k = state.range(2);
  torch::nn::Linear layer(k, n);
  layer->to(dtype);
  const auto x = torch::randn({m, k}).to(dtype).requires_grad_();
  const auto dy = torch::randn({m, n}).to(dtype) * 1e-4;
  for (auto _ : state) {
    state.PauseTiming();
    layer->zero_grad();
    x.mutable_grad().reset();
    {
      const torch::NoGradGuard no_grad;
      layer->weight.mul_(1.0);  // a new version, as after an optimizer's step
    }
    state.ResumeTiming();
    train(layer, x).backward(dy);
  }
}

void LinearStepFp32(benchmark::State& state) {
  step(state, at::kFloat, [](auto& layer, const auto& x) { return layer->forward(x); });
}
void LinearStepBf16(benchmark::State& state) {
  step(state, at::kBFloat16, [](auto& layer, const auto& x) { return layer->forward(x); });
}
void LinearStepInt8(benchmark::State& state) {
  step(state, at::kFloat, [](auto& layer, const auto& x) {
    const AutocastGuard guard(layer, Mode::QAT, te_int8::Recipe::int8_training());
    return layer->forward(x);
  });
}

void sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"M", "N", "K"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const auto& size : {std::vector<int64_t>{128, 1024, 1024}, {512, 1024, 1024}, {512, 4096, 1024}, {512, 1024, 4096},
                           {2048, 384, 384}, {2048, 1536, 384}, {16, 4096, 4096}, {1, 4096, 4096}}) {
    bench->Args(size);
  }
}
void training_sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"M", "N", "K"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const auto& size : {std::vector<int64_t>{512, 1024, 1024}, {512, 4096, 1024}}) bench->Args(size);
}
BENCHMARK(LinearFp32)->Apply(sizes);
BENCHMARK(LinearBf16)->Apply(sizes);
BENCHMARK(LinearInt8)->Apply(sizes);
BENCHMARK(LinearStepFp32)->Apply(training_sizes);
BENCHMARK(LinearStepBf16)->Apply(training_sizes);
BENCHMARK(LinearStepInt8)->Apply(training_sizes);

}  // namespace
