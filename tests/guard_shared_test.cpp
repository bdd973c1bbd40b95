// Weights that share memory: one tensor in two layers, aliases of it, parts of one buffer.
#include <functional>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

Tensor full_precision(const nn::Linear& layer, const Tensor& x) {
  return torch::addmm(layer->bias, x, layer->weight.t());
}

/// The layer computes in INT8 with the values that its weight has now, for 2-D and 3-D inputs.
bool up_to_date(nn::Linear& layer, const Tensor& x) {
  const torch::NoGradGuard no_grad;
  const auto expected = int8_result(*layer, x);
  return same(layer(x), expected) && same(layer(x.unsqueeze(0)), expected.unsqueeze(0));
}

}  // namespace

TEST_CASE("layers whose weights are one memory are told apart by their tensors", "[guard][shared]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  TwoLayers model(8, 8);
  model->to(dtype);
  model->second->weight = model->first->weight.detach();
  const auto x = torch::randn({5, 8}).to(dtype);
  const auto check = [&](nn::Linear& quantized, nn::Linear& full, const std::string& excluded) {
    const AutocastGuard guard(model, Mode::QAT, Recipe().exclude({excluded}));
    const torch::NoGradGuard no_grad;
    CHECK(same(quantized(x), int8_result(*quantized, x)));
    CHECK(same(full(x), full_precision(full, x)));
    CHECK(all_calls(guard) == 1);
  };
  check(model->first, model->second, "second");
  check(model->second, model->first, "first");
}

TEST_CASE("an alias of a weight has its own bias, in 2-D and 3-D alike", "[guard][shared]") {
  TwoLayers model(8, 8);
  model->to(at::kBFloat16);
  model->second->weight = model->first->weight.detach();
  const auto x = torch::randn({5, 8}).to(at::kBFloat16);
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(up_to_date(model->second, x));
  CHECK(up_to_date(model->first, x));
  CHECK(line_of(guard.report(), "second").bias_fused);
  CHECK(line_of(guard.report(), "first").bias_fused);
}

TEST_CASE("a weight sees what is written through another that shares its memory", "[guard][shared]") {
  const bool one_scope = GENERATE(true, false);
  const std::string alias = GENERATE("detached", "transposed", "a row slice");
  CAPTURE(one_scope, alias);
  TwoLayers model(8, 8);
  auto& source = model->first->weight;
  if (alias == "detached") {
    model->second->weight = source.detach();
  } else if (alias == "transposed") {
    model->second->weight = source.t();
  } else {
    model->second->weight = source.detach().narrow(0, 2, 4);
    model->second->bias = torch::randn({4});
  }
  torch::optim::SGD sgd(model->first->parameters(), torch::optim::SGDOptions(0.5));
  const auto x = torch::randn({5, 8});
  const auto open = [&] { return std::make_unique<AutocastGuard>(model, Mode::QAT); };
  auto guard = open();
  for (int step = 0; step < 3; ++step) {
    CHECK(up_to_date(model->second, x));
    sgd.zero_grad();
    model->first(x).pow(2).sum().backward();
    sgd.step();
    sgd.zero_grad();
    CHECK(up_to_date(model->second, x));
    CHECK(up_to_date(model->first, x));
    if (!one_scope) {
      guard.reset();
      guard = open();
    }
  }
}

TEST_CASE("weights that are parts of one buffer see it written", "[guard][shared]") {
  TwoLayers model(8, 8);
  const auto x = torch::randn({5, 8});
  auto buffer = nn::utils::parameters_to_vector(model->parameters()).detach();
  const AutocastGuard guard(model, Mode::QAT);
  for (int step = 0; step < 3; ++step) {
    buffer.add_(torch::randn_like(buffer));
    if (step < 2) nn::utils::vector_to_parameters(buffer, model->parameters());
    CHECK(up_to_date(model->first, x));
    CHECK(up_to_date(model->second, x));
  }
}

TEST_CASE("a layer in full precision makes those that are given its weight so too", "[guard][shared]") {
  TwoLayers model;
  const auto x = torch::randn({5, 8});
  const AutocastGuard guard(model, Mode::QAT, Recipe().exclude({"second"}));
  model->second->weight = model->first->weight;
  CHECK(same(model->first(x), full_precision(model->first, x)));
  CHECK(same(model->second(x), full_precision(model->second, x)));
  CHECK(all_calls(guard) == 0);
  CHECK(line_of(guard.report(), "first").reason == "was given the weight of a layer in full precision");
}

TEST_CASE("tied layers that get weights of their own inside are two layers", "[guard][shared]") {
  TwoLayers model;
  model->second->weight = model->first->weight;
  const auto x = torch::randn({5, 8});
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(up_to_date(model->second, x));
  CHECK(calls_of(guard, "first") == 2);
  CHECK(line_of(guard.report(), "second").reason == "weight tied to 'first', where its calls count");
  model->second->weight = torch::randn({4, 8});
  CHECK(up_to_date(model->first, x));
  CHECK(up_to_date(model->second, x));
  CHECK(calls_of(guard, "first") == 4);
  CHECK(calls_of(guard, "second") == 2);
}

TEST_CASE("a negated view of a weight is not the weight", "[guard][shared]") {
  OneLayer model;
  const auto x = torch::randn({5, 8});
  const AutocastGuard guard(model, Mode::QAT);
  const torch::NoGradGuard no_grad;
  const auto negative = model->fc->weight._neg_view();
  CHECK(torch::allclose(torch::linear(x, negative), -torch::mm(x, model->fc->weight.t().clone())));
  CHECK(calls_of(guard, "fc") == 0);
}

TEST_CASE("a weight sees what is written through an alias, also where the call is given the weight itself", "[guard][shared]") {
  nn::Linear layer(8, 4);
  te_int8::QuantizedLinear by_itself(layer.ptr());
  const bool scoped = GENERATE(true, false);
  const auto x = torch::randn({5, 8});
  const auto alias = layer->weight.data();
  const auto guard = scoped ? std::make_unique<AutocastGuard>(layer, Mode::QAT) : nullptr;
  const torch::NoGradGuard no_grad;
  for (int i = 0; i < 2; ++i) {
    const auto y = scoped ? torch::linear(x, layer->weight, layer->bias) : by_itself(x);
    CHECK(same(y, int8_result(*layer, x)));
    alias.mul_(3);
  }
}

TEST_CASE("a layer of an inner scope in full precision stays so when it is given an outer weight", "[guard][shared]") {
  TwoLayers model;
  const auto x = torch::randn({5, 8});
  const AutocastGuard outer(model, Mode::QAT);
  const AutocastGuard inner(model->second, Mode::Off);
  model->second->weight = model->first->weight;
  CHECK(same(model->second(x), full_precision(model->second, x)));
}
