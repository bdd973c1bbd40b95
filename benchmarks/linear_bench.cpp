// Linear layers: a quantized forward on the CPU, dynamic quantization and bias included, beside LibTorch's
// fp32 and bf16 in the same run. Threads: OMP_NUM_THREADS. Rows are M, N, K.
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
    x = torch::randn({m, k}).to(dtype);
  }
  void run(benchmark::State& state) {
    const torch::NoGradGuard no_grad;
    for (auto& layer : layers) layer->forward(x);
    std::size_t next = 0;
    for (auto _ : state) {
      benchmark::DoNotOptimize(layers[next]->forward(x));
      if (++next == layers.size()) next = 0;
    }
    const auto operations = 2.0 * static_cast<double>(state.range(0) * state.range(1) * state.range(2));
    state.counters["GOPS"] = benchmark::Counter(
        operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  }
  torch::nn::Sequential model;
  std::vector<torch::nn::Linear> layers;
  at::Tensor x;
};

bool is_cold(const benchmark::State& state) { return state.range(0) <= 16; }

void LinearFp32(benchmark::State& state) { Layers(state, at::kFloat, is_cold(state)).run(state); }
void LinearBf16(benchmark::State& state) { Layers(state, at::kBFloat16, is_cold(state)).run(state); }
void LinearInt8(benchmark::State& state) {
  Layers layers(state, at::kFloat, is_cold(state));
  const AutocastGuard guard(layers.model, Mode::Inference);
  layers.run(state);
}

void sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"M", "N", "K"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const auto& size : {std::vector<int64_t>{128, 1024, 1024}, {512, 1024, 1024}, {512, 4096, 1024}, {512, 1024, 4096},
                           {2048, 384, 384}, {2048, 1536, 384}, {16, 4096, 4096}, {1, 4096, 4096}}) {
    bench->Args(size);
  }
}
BENCHMARK(LinearFp32)->Apply(sizes);
BENCHMARK(LinearBf16)->Apply(sizes);
BENCHMARK(LinearInt8)->Apply(sizes);

}  // namespace
