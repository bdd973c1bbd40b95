// Gradients through a scope: after it, accumulated, of layers called twice and of tied weights.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// An embedding whose weight is the head's too.
struct TiedImpl : nn::Module {
  TiedImpl() {
    embedding = register_module("embedding", nn::Embedding(12, 8));
    fc = register_module("fc", nn::Linear(8, 8));
    head = register_module("head", nn::Linear(nn::LinearOptions(8, 12).bias(false)));
    head->weight = embedding->weight;
  }
  Tensor forward(const Tensor& tokens) { return head(fc(embedding(tokens))); }
  nn::Embedding embedding{nullptr};
  nn::Linear fc{nullptr}, head{nullptr};
};
TORCH_MODULE(Tied);

}  // namespace

TEST_CASE("gradients are those of fake quantization in plain operations", "[guard][training]") {
  const auto shape = GENERATE(std::vector<int64_t>{6, 16}, std::vector<int64_t>{2, 3, 16});
  torch::manual_seed(2);  // a hidden value on the edge between two codes would be another's
  Mlp model;
  const auto x = torch::randn(shape).set_requires_grad(true);
  const auto linear = [](const nn::LinearImpl& layer, const Tensor& input) {
    return fake_quantized_linear(input, layer.weight, layer.bias);
  };
  const auto hidden = torch::relu(linear(*model->fc1, x));
  const auto y = linear(*model->head, torch::relu(linear(*model->fc2, hidden)));
  auto inputs = model->parameters();
  inputs.push_back(x);
  const auto expected = torch::autograd::grad({y.sin().sum()}, inputs);

  Tensor loss;
  {
    const AutocastGuard guard(model, Mode::QAT);
    loss = model(x).sin().sum();
  }
  loss.backward();  // after the scope
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    CAPTURE(i);
    CHECK(relative_error(inputs[i].grad(), expected[i]) < 1e-5);
  }
}

TEST_CASE("gradients accumulate over several scopes and several forwards of one", "[guard][training]") {
  const bool one_scope = GENERATE(true, false);
  Mlp model;
  const auto x = torch::randn({2, 5, 16});
  std::vector<Tensor> expected;
  for (int i = 0; i < 2; ++i) {
    const AutocastGuard guard(model, Mode::QAT);
    const auto gradients = torch::autograd::grad({model(x[i]).pow(2).sum()}, model->parameters());
    for (std::size_t p = 0; p < gradients.size(); ++p) {
      if (i == 0) {
        expected.push_back(gradients[p]);
      } else {
        expected[p] = expected[p] + gradients[p];
      }
    }
  }
  if (one_scope) {
    const AutocastGuard guard(model, Mode::QAT);
    for (int i = 0; i < 2; ++i) model(x[i]).pow(2).sum().backward();
  } else {
    for (int i = 0; i < 2; ++i) {
      const AutocastGuard guard(model, Mode::QAT);
      model(x[i]).pow(2).sum().backward();
    }
  }
  const auto parameters = model->parameters();
  for (std::size_t p = 0; p < parameters.size(); ++p) CHECK(same(parameters[p].grad(), expected[p]));
}

TEST_CASE("a layer that is called twice counts twice and gets both gradients", "[guard][training]") {
  OneLayer model(8, 8);
  const auto x = torch::randn({3, 8});
  const AutocastGuard guard(model, Mode::QAT);
  const auto once = model(x);
  const auto twice = model(once);
  CHECK(same(twice.detach(), int8_result(*model->fc, once)));
  twice.sum().backward();
  CHECK(calls_of(guard, "fc") == 2);
  const auto dy = torch::ones({3, 8}), inner = dy.matmul(dequantized(model->fc->weight));
  const auto expected = dy.t().matmul(dequantized(once)) + inner.t().matmul(dequantized(x));
  CHECK(relative_error(model->fc->weight.grad(), expected) < 1e-5);
}

TEST_CASE("an embedding and a head share a weight", "[guard][training]") {
  Tied model;
  const auto tokens = torch::randint(12, {2, 5});
  const AutocastGuard guard(model, Mode::QAT);
  const auto y = model(tokens);
  const auto x = torch::embedding(model->embedding->weight, tokens);
  const auto hidden = int8_result(*model->fc, x);
  CHECK(same(y.detach(), int8_result(*model->head, hidden)));
  CHECK(calls_of(guard, "head") == 1);
  CHECK(line_of(guard.report(), "embedding").action == "full precision");
  y.sum().backward();
  const auto dy = torch::ones({10, 12});
  const auto dx = dy.matmul(dequantized(model->head->weight)).matmul(dequantized(model->fc->weight));
  auto expected = dy.t().matmul(dequantized(hidden).view({10, 8}));
  expected.index_add_(0, tokens.view(-1), dx);
  CHECK(relative_error(model->embedding->weight.grad(), expected) < 1e-5);
}

TEST_CASE("two Linears share a weight and keep their biases", "[guard][training]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  TwoLayers model(64, 32);
  model->to(dtype);
  model->second->weight = model->first->weight;
  const auto x = torch::randn({2, 6, 64}).to(dtype);
  const AutocastGuard guard(model, Mode::QAT);
  auto y = GENERATE_COPY(x, x[0]);
  CHECK(same(model->first(y).detach(), int8_result(*model->first, y)));
  CHECK(same(model->second(y).detach(), int8_result(*model->second, y)));
  CHECK(calls_of(guard, "first") == 2);
  CHECK(calls_of(guard, "second") == 0);
  CHECK(line_of(guard.report(), "second").reason.find("'first'") != std::string::npos);
  (model->first(y) + 2 * model->second(y)).sum().backward();
  const auto rows = static_cast<float>(y.numel() / 64);
  CHECK(model->first->bias.grad().eq(rows).all().item<bool>());
  CHECK(model->second->bias.grad().eq(2 * rows).all().item<bool>());
}

TEST_CASE("of two Linears that share a weight one may be excluded", "[guard][training]") {
  TwoLayers model;
  model->second->weight = model->first->weight;
  const auto x = torch::randn({3, 8});
  const auto excluded = GENERATE(as<std::string>(), "first", "second");
  const AutocastGuard guard(model, Mode::QAT, Recipe().exclude({excluded}));
  model->first(x);
  model->second(x);
  const auto report = guard.report();
  // One weight is either caught or not; the report has to tell the truth about both layers.
  for (const auto& line : report.layers) CHECK((line.calls > 0 || !line.reason.empty()));
}

TEST_CASE("frozen weights get no gradient and pass one on", "[guard][training]") {
  Mlp model;
  model->fc2->weight.set_requires_grad(false);
  model->fc2->bias.set_requires_grad(false);
  const auto recipe = GENERATE(as<Recipe>(), Recipe::qat(), Recipe::switchback(), Recipe::int8_training());
  const AutocastGuard guard(model, Mode::QAT, recipe);
  model(torch::randn({2, 3, 16})).sum().backward();
  CHECK_FALSE(model->fc2->weight.grad().defined());
  CHECK_FALSE(model->fc2->bias.grad().defined());
  CHECK(model->fc1->weight.grad().count_nonzero().item<int64_t>() > 0);
}

TEST_CASE("a frozen layer on inputs without gradient records no graph", "[guard][training]") {
  OneLayer model;
  model->fc->weight.set_requires_grad(false);
  model->fc->bias.set_requires_grad(false);
  const auto x = GENERATE(torch::randn({3, 8}), torch::randn({2, 3, 8}));
  const AutocastGuard guard(model, Mode::QAT);
  CHECK_FALSE(model(x).requires_grad());
}

TEST_CASE("a metric between backward and step does not change the training", "[guard][training]") {
  const auto losses_with = [](bool metric, bool scope_per_step) {
    torch::manual_seed(5);
    Mlp model;
    torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    const auto x = torch::randn({32, 16}), target = torch::randn({32, 4});
    std::vector<double> losses;
    std::unique_ptr<AutocastGuard> whole;
    if (!scope_per_step) whole = std::make_unique<AutocastGuard>(model, Mode::QAT);
    for (int step = 0; step < 20; ++step) {
      std::unique_ptr<AutocastGuard> one;
      if (scope_per_step) one = std::make_unique<AutocastGuard>(model, Mode::QAT);
      optimizer.zero_grad();
      const auto loss = torch::mse_loss(model(x), target);
      loss.backward();
      if (metric) {
        const c10::InferenceMode inference_mode;
        model(x);
      }
      optimizer.step();
      losses.push_back(loss.item<double>());
    }
    return losses;
  };
  const auto expected = losses_with(false, true);
  CHECK(losses_with(true, false) == expected);
  CHECK(losses_with(true, true) == expected);
  CHECK(expected.back() < expected.front());
}
