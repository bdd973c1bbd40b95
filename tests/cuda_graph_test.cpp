// CUDA graphs of a guarded model: what is captured, and what a replay sees.
#include <te_int8/number_format.h>

#include "guard_support.h"

#ifdef TE_INT8_TESTS_WITH_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>

using namespace te_int8_test;

namespace {

/// f, captured on a stream of its own after it has run there once.
template <typename F>
std::unique_ptr<at::cuda::CUDAGraph> capture(const F& f) {
  c10::cuda::getCurrentCUDAStream().synchronize();  // what f reads is made there
  const auto stream = c10::cuda::getStreamFromPool();
  auto graph = std::make_unique<at::cuda::CUDAGraph>();
  {
    const c10::StreamGuard on(stream);
    f();
    stream.synchronize();
    graph->capture_begin();
    f();
    graph->capture_end();
    stream.synchronize();
  }
  return graph;
}

void synchronize() { c10::cuda::getCurrentCUDAStream().synchronize(); }

}  // namespace

TEST_CASE("a replayed forward gives what the model gives", "[cuda][guard]") {
  if (!test_device().is_cuda()) SKIP("about CUDA graphs; runs where TE_INT8_TEST_DEVICE is cuda");
  const int64_t rows = GENERATE(1, 5, 40, 300);
  torch::manual_seed(91);
  nn::Sequential model(nn::Linear(128, 256), nn::GELU(), nn::Linear(256, 64));
  model->to(at::kBFloat16);
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({rows, 128}).to(at::kBFloat16), other = torch::randn({rows, 128}).to(at::kBFloat16);
  const AutocastGuard guard(model, Mode::Inference);
  const auto expected = model->forward(other).clone();
  Tensor y;
  const auto graph = capture([&] { y = model->forward(x); });
  x.copy_(other);
  graph->replay();
  synchronize();
  CHECK(same(y, expected));
}

TEST_CASE("codes that a graph reads outlive the scope", "[cuda][guard]") {
  if (!test_device().is_cuda()) SKIP("about CUDA graphs; runs where TE_INT8_TEST_DEVICE is cuda");
  torch::manual_seed(92);
  nn::Linear layer(128, 64);
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({3, 128});
  Tensor y, expected;
  std::unique_ptr<at::cuda::CUDAGraph> graph;
  {
    const AutocastGuard guard(layer, Mode::Inference);
    expected = layer->forward(x).clone();
    graph = capture([&] { y = layer->forward(x); });
  }
  te_int8::refresh(*layer);
  std::vector<Tensor> others;
  for (int i = 0; i < 50; ++i) others.push_back(torch::full({64 * 128}, 77, at::kChar));  // takes memory that was freed
  graph->replay();
  synchronize();
  CHECK(same(y, expected));
}

TEST_CASE("gradients leave their codes in a captured step too", "[cuda][guard]") {
  if (!test_device().is_cuda()) SKIP("about CUDA graphs; runs where TE_INT8_TEST_DEVICE is cuda");
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  const auto make = [] {
    torch::manual_seed(95);
    nn::Sequential model(nn::Linear(64, 16384), nn::GELU(), nn::Linear(16384, 64));
    model->to(at::kBFloat16);
    return model;
  };
  const auto x = torch::randn({1184, 64}).to(at::kBFloat16);
  const auto step = [&](nn::Sequential& model) {
    for (auto& parameter : model->parameters()) parameter.mutable_grad() = Tensor();
    model->forward(x).square().mean().backward();
    const torch::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) parameter.sub_(parameter.grad(), 0.5);
  };
  auto plain = make(), captured = make();
  {
    const AutocastGuard guard(plain, Mode::QAT, recipe);
    for (int i = 0; i < 5; ++i) step(plain);
  }
  const AutocastGuard guard(captured, Mode::QAT, recipe);
  std::unique_ptr<at::cuda::CUDAGraph> graph;
  const int passes = OperationCounter::calls("quantize_rows_and_columns", [&] {
    graph = capture([&] { step(captured); });  // one step is run, the second captured
  });
  CHECK(passes <= (recipe.grad_weight() == Precision::Int8 ? 3 : 0));  // the second step has one less than the first may have
  for (int i = 1; i < 5; ++i) graph->replay();
  synchronize();
  for (std::size_t i = 0; i < plain->parameters().size(); ++i) {
    CHECK(same(captured->parameters()[i].detach(), plain->parameters()[i].detach()));
  }
}

TEST_CASE("a captured training step sees the steps that replays make", "[cuda][guard]") {
  if (!test_device().is_cuda()) SKIP("about CUDA graphs; runs where TE_INT8_TEST_DEVICE is cuda");
  const auto recipe = GENERATE(
      Recipe::qat(), Recipe::switchback(), Recipe::int8_training(), Recipe::int8_training().preactivations(Precision::Int8));
  const int micro_batches = GENERATE(1, 3);
  torch::manual_seed(93);
  const auto make = [] {
    torch::manual_seed(94);
    return nn::Sequential(
        nn::LayerNorm(nn::LayerNormOptions({64})), nn::Linear(64, 128), nn::GELU(), nn::Linear(128, 64), nn::ReLU(),
        nn::Linear(64, 32));
  };
  const auto x = torch::randn({16, 64}), target = torch::randn({16, 32});
  const auto step = [&](nn::Sequential& model) {
    for (auto& parameter : model->parameters()) parameter.mutable_grad() = Tensor();
    auto all = torch::zeros({});
    for (int i = 0; i < micro_batches; ++i) {
      const auto loss = (model->forward(x + i) - target).pow(2).mean();
      loss.backward();
      all += loss.detach();
    }
    const torch::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) parameter.sub_(parameter.grad(), 0.03);
    return all;
  };
  auto plain = make(), captured = make();
  std::vector<float> expected, got;
  {
    const AutocastGuard guard(plain, Mode::QAT, recipe);
    for (int i = 0; i < 6; ++i) expected.push_back(step(plain).item<float>());
  }
  {
    const AutocastGuard guard(captured, Mode::QAT, recipe);
    Tensor loss;
    const auto graph = capture([&] { loss = step(captured); });  // one step is run, the second captured
    for (int i = 1; i < 6; ++i) {
      graph->replay();
      synchronize();
      got.push_back(loss.item<float>());
    }
    got.push_back(step(captured).item<float>());  // outside of the graph again: the seventh step
  }
  CHECK(std::vector<float>(expected.begin() + 1, expected.end()) == std::vector<float>(got.begin(), got.end() - 1));
  const AutocastGuard guard(plain, Mode::QAT, recipe);
  CHECK(step(plain).item<float>() == got.back());
}

TEST_CASE("a captured training step of convolutions and an embedding sees the steps that replays make", "[cuda][guard]") {
  if (!test_device().is_cuda()) SKIP("about CUDA graphs; runs where TE_INT8_TEST_DEVICE is cuda");
  const auto recipe = Recipe().embeddings(Precision::Int8);
  struct PixelsImpl : nn::Module {
    PixelsImpl() {
      table = register_module("table", nn::Embedding(10, 8));
      convolutions = register_module(
          "convolutions", nn::Sequential(nn::Conv2d(nn::Conv2dOptions(8, 16, 3).padding(1)), nn::ReLU(),
                                         nn::Conv2d(nn::Conv2dOptions(16, 8, 3))));
    }
    Tensor forward(const Tensor& indices) { return convolutions->forward(table(indices).permute({0, 3, 1, 2})); }
    nn::Embedding table{nullptr};
    nn::Sequential convolutions{nullptr};
  };
  const auto make = [] {
    torch::manual_seed(96);
    return std::make_shared<PixelsImpl>();
  };
  const auto indices = torch::randint(10, {4, 6, 6}, torch::kLong);
  const auto target = torch::randn({4, 8, 4, 4});
  const auto step = [&](PixelsImpl& model) {
    for (auto& parameter : model.parameters()) parameter.mutable_grad() = Tensor();
    const auto loss = (model.forward(indices) - target).pow(2).mean();
    loss.backward();
    const torch::NoGradGuard no_grad;
    for (auto& parameter : model.parameters()) parameter.sub_(parameter.grad(), 0.3);
    return loss.detach();
  };
  const auto plain = make(), captured = make();
  std::vector<float> expected;
  {
    const AutocastGuard guard(plain, Mode::QAT, recipe);
    for (int i = 0; i < 6; ++i) expected.push_back(step(*plain).item<float>());
  }
  const AutocastGuard guard(captured, Mode::QAT, recipe);
  Tensor loss;
  const auto graph = capture([&] { loss = step(*captured); });
  for (int i = 1; i < 6; ++i) {
    graph->replay();
    synchronize();
    const auto at = static_cast<std::size_t>(i);
    CAPTURE(i, expected[at - 1]);
    // cuDNN's gradients are added up in no fixed order.
    CHECK_THAT(loss.item<float>(), Catch::Matchers::WithinRel(expected[at], 0.003F));
    CHECK(loss.item<float>() < 0.99F * expected[at - 1]);
  }
}

TEST_CASE("a forward between replays of a training step sees their steps", "[cuda][guard]") {
  if (!test_device().is_cuda()) SKIP("about CUDA graphs; runs where TE_INT8_TEST_DEVICE is cuda");
  torch::manual_seed(95);
  nn::Linear layer(64, 32);
  const auto x = torch::randn({16, 64}), target = torch::randn({16, 32});
  const AutocastGuard guard(layer, Mode::QAT);
  const auto graph = capture([&] {
    (layer->forward(x) - target).pow(2).mean().backward();
    const torch::NoGradGuard no_grad;
    for (auto& parameter : layer->parameters()) {
      parameter.sub_(parameter.grad(), 0.1);
      parameter.mutable_grad() = Tensor();  // nothing on the host tells of a step
    }
  });
  const auto evaluate = [&] {
    const torch::NoGradGuard no_grad;
    return layer->forward(x).clone();
  };
  auto before = evaluate();
  for (int i = 0; i < 3; ++i) {
    graph->replay();
    synchronize();
    const auto after = evaluate();
    const auto [w, w_scales] = te_int8::reference::quantize_rows(layer->weight.detach(), "row");
    const auto [a, a_scales] = te_int8::reference::quantize_rows(x, "row");
    const auto expected = te_int8::reference::scaled_mm(a, w, a_scales, w_scales, layer->bias.detach(), at::kFloat);
    CHECK_FALSE(same(after, before));
    CHECK(relative_error(after, expected) < 1e-5);
    before = after;
  }
}

#else
TEST_CASE("CUDA graphs", "[cuda][guard]") { SKIP("te_int8 was built without CUDA"); }
#endif
