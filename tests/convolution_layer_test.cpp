// Quantized convolutions as layers: codes of their weights, and what a scope says of them.
#include "guard_support.h"

using namespace te_int8_test;

TEST_CASE("codes of a convolution's weight are made once, and anew when it changes", "[guard][convolution]") {
  nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(4, 8, 3)), nn::ReLU(), nn::Conv2d(nn::Conv2dOptions(8, 8, 3)));
  const auto x = torch::randn({2, 4, 9, 9});
  const AutocastGuard guard(model, Mode::QAT);
  const auto weight = model[0]->as<nn::Conv2d>()->weight;
  {
    const QuantizationCounter counter;
    model->forward(x);
    model->forward(x);
    CHECK(counter.of(weight) == 1);
    CHECK(counter.of(x) == 2);
  }
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  model->forward(x).sum().backward();
  const auto before = model->forward(x).detach().clone();
  optimizer.step();
  const auto after = model->forward(x).detach();
  CHECK_FALSE(same(before, after));
  auto* first = model[0]->as<nn::Conv2d>();
  first->weight = torch::randn({8, 4, 3, 3});
  CHECK_FALSE(same(model->forward(x).detach(), after));
  CHECK(calls_of(guard, "0") == 6);
}

TEST_CASE("one weight is convolved with several dilations and numbers of groups", "[guard][convolution]") {
  torch::manual_seed(0);
  nn::Conv2d layer(nn::Conv2dOptions(3, 6, 3));
  layer->to(test_device());
  const torch::NoGradGuard no_grad;
  struct Call {
    Tensor x;
    int64_t dilation, groups;
    Tensor of(const nn::Conv2d& by) const { return torch::conv2d(x, by->weight, by->bias, 1, 1, dilation, groups); }
  };
  std::vector<Call> calls;
  for (const int64_t dilation : {1, 2}) {
    for (const int64_t groups : {1, 2}) calls.push_back({torch::randn({2, 3 * groups, 12, 11}, test_device()), dilation, groups});
  }
  std::vector<Tensor> alone;
  for (const auto& call : calls) {  // a weight of its own for each
    const nn::Conv2d copy(std::dynamic_pointer_cast<nn::Conv2dImpl>(layer->clone()));
    const AutocastGuard guard(copy, Mode::Inference);
    alone.push_back(call.of(copy));
  }
  const AutocastGuard guard(layer, Mode::Inference);
  for (int i = 0; i < 2; ++i) {
    for (std::size_t at = 0; at < calls.size(); ++at) CHECK(same(calls[at].of(layer), alone[at]));
  }
  CHECK(guard.report().layers.front().calls == 8);
}

TEST_CASE("what a recipe cannot do with a convolution is in the report", "[guard][convolution]") {
  nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(4, 8, 3)), nn::ConvTranspose2d(nn::ConvTranspose2dOptions(8, 4, 3)));
  const auto x = torch::randn({2, 4, 9, 9});
  {
    const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training());
    model->forward(x).sum().backward();
    CHECK(line_of(guard.report(), "0").action == "quantized");
    CHECK(line_of(guard.report(), "0").reason.find("gradients of convolutions are in full precision") == 0);
    CHECK(line_of(guard.report(), "1").reason == "transposed convolutions stay in full precision");
  }
  const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training().output(Precision::Full));
  CHECK(line_of(guard.report(), "0").action == "full precision");
  CHECK(line_of(guard.report(), "0").reason.find("no backward in INT8") != std::string::npos);
}
