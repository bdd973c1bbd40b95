// What a scope costs: entering and leaving it, routing a call to a quantized layer, and standing in
// the way of operations that have nothing to do with it. Compare the rows in pairs; docs/design.md
// has the figures.
#include <optional>

#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include <te_int8/te_int8.h>

namespace {

using te_int8::AutocastGuard;
using te_int8::Mode;

torch::nn::Sequential linears(int64_t count, int64_t width) {
  torch::nn::Sequential model;
  for (int64_t i = 0; i < count; ++i) model->push_back(torch::nn::Linear(width, width));
  return model;
}

/// Entry and exit of a scope over range(0) Linear layers.
void ScopeEntryExit(benchmark::State& state) {
  auto model = linears(state.range(0), 16);
  for (auto _ : state) AutocastGuard guard(model, Mode::QAT);
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(ScopeEntryExit)->Arg(1)->Arg(200)->Unit(benchmark::kMicrosecond);

/// A quantized 1x16x16 layer, called by itself, and the transpose that LinearImpl::forward makes of its
/// weight in any case: what RoutedLayer adds to this is the routing.
void DirectLayer(benchmark::State& state) {
  const torch::NoGradGuard no_grad;
  torch::nn::Linear fc(16, 16);
  te_int8::QuantizedLinear quantized(fc.ptr());
  const auto x = torch::randn({1, 16});
  for (auto _ : state) {
    benchmark::DoNotOptimize(fc->weight.t());
    benchmark::DoNotOptimize(quantized->forward(x));
  }
}
BENCHMARK(DirectLayer);

/// The layer in full precision, for comparison.
void FullPrecisionLayer(benchmark::State& state) {
  const torch::NoGradGuard no_grad;
  torch::nn::Linear fc(16, 16);
  const auto x = torch::randn({1, 16});
  for (auto _ : state) benchmark::DoNotOptimize(fc->forward(x));
}
BENCHMARK(FullPrecisionLayer);

/// The same layer through torch::nn::Linear::forward in a scope over range(0) layers.
void RoutedLayer(benchmark::State& state) {
  const torch::NoGradGuard no_grad;
  auto model = linears(state.range(0), 16);
  auto fc = model->ptr<torch::nn::LinearImpl>(0);
  const auto x = torch::randn({1, 16});
  const AutocastGuard guard(model, Mode::Inference);
  for (auto _ : state) benchmark::DoNotOptimize(fc->forward(x));
}
BENCHMARK(RoutedLayer)->Arg(1)->Arg(200);

/// range(0) layers in a scope, or 0 for no scope at all.
struct OptionalScope {
  explicit OptionalScope(int64_t layers) {
    if (layers == 0) return;
    model = linears(layers, 16);
    guard.emplace(model, Mode::Inference);
  }
  torch::nn::Sequential model{nullptr};
  std::optional<AutocastGuard> guard;
};

/// A 1x16x16 matmul whose second operand no layer of the scope has. range(1): 1 if it is W^T of
/// somebody's W, else 0.
void UnguardedMatmul(benchmark::State& state) {
  const torch::NoGradGuard no_grad;
  const OptionalScope scope(state.range(0));
  const auto x = torch::randn({1, 16}), w = torch::randn({16, 16});
  const auto operand = state.range(1) == 1 ? w.t() : w;
  for (auto _ : state) benchmark::DoNotOptimize(torch::mm(x, operand));
}
BENCHMARK(UnguardedMatmul)->ArgsProduct({{0, 1, 50, 100, 200}, {0, 1}});

void UnguardedAdd(benchmark::State& state) {
  const torch::NoGradGuard no_grad;
  const OptionalScope scope(state.range(0));
  const auto x = torch::randn({1, 16});
  for (auto _ : state) benchmark::DoNotOptimize(torch::add(x, x));
}
BENCHMARK(UnguardedAdd)->Arg(0)->Arg(200);

void UnguardedView(benchmark::State& state) {
  const torch::NoGradGuard no_grad;
  const OptionalScope scope(state.range(0));
  const auto x = torch::randn({1, 16});
  for (auto _ : state) benchmark::DoNotOptimize(x.view({4, 4}));
}
BENCHMARK(UnguardedView)->Arg(0)->Arg(200);

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
