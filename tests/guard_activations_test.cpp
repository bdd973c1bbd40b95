// The codes of activations: shared by layers that read the same values, never of values that have passed.
#include "guard_support.h"

using namespace te_int8_test;

TEST_CASE("an activation that feeds three layers is quantized once", "[guard][codes]") {
  const auto shape = GENERATE(std::vector<int64_t>{6, 8}, std::vector<int64_t>{2, 3, 8});
  nn::ModuleList projections;
  for (int i = 0; i < 3; ++i) projections->push_back(nn::Linear(8, 4));
  const AutocastGuard guard(projections, Mode::QAT);
  const auto x = torch::randn(shape);
  const QuantizationCounter counter;
  for (int i = 0; i < 3; ++i) {
    CHECK(same(projections->at<nn::LinearImpl>(static_cast<std::size_t>(i)).forward(x),
               int8_result(projections->at<nn::LinearImpl>(static_cast<std::size_t>(i)), x.clone())));
  }
  CHECK(counter.of(x) == 1);
}

TEST_CASE("an activation's codes are found through a reshape", "[guard][codes]") {
  TwoLayers model;
  const AutocastGuard guard(model, Mode::QAT);
  const auto x = torch::randn({2, 3, 8});
  const QuantizationCounter counter;
  model->first(x);
  CHECK(same(model->second(x.view({6, 8})), int8_result(*model->second, x.clone().view({6, 8}))));
  CHECK(counter.of(x) == 1);
}

TEST_CASE("a buffer that is refilled between two calls of a layer is read again", "[guard][codes]") {
  SKIP_UNLESS_CPU();
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  const torch::NoGradGuard no_grad;
  std::vector<float> buffer(40, 1.0F);
  const auto x = torch::from_blob(buffer.data(), {5, 8});
  model->forward(x);
  const auto write = GENERATE(0, 1, 2);
  if (write == 0) buffer[7] = -3;
  if (write == 1) x.data().mul_(-2).add_(torch::randn({5, 8}));
  if (write == 2) x.copy_(torch::randn({5, 8}));
  CHECK(same(model->forward(x), int8_result(*model->fc, x)));
}

TEST_CASE("activations of one memory but two dtypes are two activations", "[guard][codes]") {
  TwoLayers model;
  model->first->to(torch::kBFloat16);
  model->second->to(torch::kHalf);
  const AutocastGuard guard(model, Mode::QAT);
  const auto x = torch::randn({5, 8}).to(torch::kBFloat16);
  model->first(x);
  const auto as_half = x.view(torch::kHalf);
  CHECK(same(model->second(as_half), int8_result(*model->second, as_half.clone())));
}

TEST_CASE("layers that read one activation share its transposed codes in the backward", "[guard][codes]") {
  torch::manual_seed(51);
  nn::Linear q(32, 32), k(32, 16), v(32, 48);
  nn::ModuleList model(q, k, v);
  const bool of_norm = GENERATE(false, true);  // whose codes come with it on a GPU, and are made again
  CAPTURE(of_norm);
  const auto x = torch::randn({2, 8, 32}).requires_grad_();
  const auto activation = [&] { return of_norm ? at::layer_norm(x, {32}) : x.sin(); };
  const auto loss_of = [&] {
    const auto h = activation();
    return q(h).pow(2).sum() + k(h).pow(2).sum() + v(h).pow(2).sum();
  };
  const auto inputs = model->parameters();
  std::vector<Tensor> alone;
  {
    const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training());
    for (auto* layer : {&q, &k, &v}) {
      const auto gradients = torch::autograd::grad({(*layer)(activation()).pow(2).sum()}, {(*layer)->weight, (*layer)->bias});
      alone.insert(alone.end(), gradients.begin(), gradients.end());
    }
  }
  const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training());
  for (int i = 0; i < 2; ++i) loss_of().backward();  // makes the transposed codes of the weights
  model->zero_grad();
  Tensor loss = loss_of();
  CHECK(OperationCounter::calls("requantize_columns", [&] { loss.backward({}, /*retain_graph=*/true); }) == 1 + 3);
  for (std::size_t i = 0; i < inputs.size(); ++i) CHECK(same(inputs[i].grad(), alone[i]));
  model->zero_grad();
  loss.backward();
  for (std::size_t i = 0; i < inputs.size(); ++i) CHECK(same(inputs[i].grad(), alone[i]));
}

TEST_CASE("neither the graph nor the scope keeps an activation alive", "[guard][codes]") {
  SKIP_UNLESS_CPU();
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  std::vector<float> buffer(40, 1.0F);
  bool freed = false;
  Tensor y;
  {
    const auto x = torch::from_blob(buffer.data(), {5, 8}, [&](void*) { freed = true; });
    y = model->forward(x);
  }
  CHECK(freed);
  y.sum().backward();
  CHECK(model->fc->weight.grad().defined());
}

TEST_CASE("a tensor that starts its versions anew over an activation's memory is another activation", "[guard][codes]") {
  TwoLayers model;
  const AutocastGuard guard(model, Mode::QAT);
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({5, 8});
  model->first(x);
  x.mul_(-3).add_(1);
  const auto renewed = x.data();
  CHECK(same(model->second(renewed), int8_result(*model->second, x.clone())));
}
