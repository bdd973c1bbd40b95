// How long the codes of weights live, and that nothing else lives for their sake.
#include "warm_layer.h"

using namespace te_int8_test;

TEST_CASE("codes end with the scope, and those of frozen weights with the weight", "[guard][codes]") {
  const auto before = held_codes();
  {
    TwoLayers model;
    model->second->weight.set_requires_grad(false);
    {
      const AutocastGuard guard(model, Mode::QAT);
      model->first(torch::randn({5, 8}));
      model->second(torch::randn({5, 8}));
      CHECK(held_codes() == before + 2);
    }
    CHECK(held_codes() == before + 1);
    const AutocastGuard guard(model, Mode::QAT);
    const QuantizationCounter counter;
    model->second(torch::randn({5, 8}));
    CHECK(counter.of(model->second->weight) == 0);
  }
  CHECK(held_codes() == before);
}

TEST_CASE("a leaf that is assigned anew for each step does not pile up, nor do its codes", "[guard][codes]") {
  OneLayer model;
  const auto before = held_codes();
  const AutocastGuard guard(model, Mode::QAT);
  c10::weak_intrusive_ptr<c10::TensorImpl> first(torch::randn({1}).getIntrusivePtr());
  for (int i = 0; i < 20; ++i) {
    model->fc->weight = torch::randn({4, 8}).set_requires_grad(true);
    if (i == 0) first = c10::weak_intrusive_ptr<c10::TensorImpl>(model->fc->weight.getIntrusivePtr());
    model->forward(torch::randn({5, 8})).sum().backward();
  }
  CHECK(calls_of(guard, "fc") == 20);
  CHECK(held_codes() <= before + 2);
  // The module's own registry holds the parameter it was made with, and nobody the ones in between.
  CHECK(first.expired());
}

TEST_CASE("the cache lets a model go that dies inside its scope's life", "[guard][codes]") {
  c10::weak_intrusive_ptr<c10::TensorImpl> weight(torch::randn({1}).getIntrusivePtr());
  {
    OneLayer model;
    weight = c10::weak_intrusive_ptr<c10::TensorImpl>(model->fc->weight.getIntrusivePtr());
    const AutocastGuard guard(model, Mode::QAT);
    model->forward(torch::randn({5, 8})).sum().backward();
  }
  CHECK(weight.expired());
}

TEST_CASE("weights of a long recurrence are quantized once", "[guard][codes]") {
  OneLayer model(8, 8);
  const AutocastGuard guard(model, Mode::QAT);
  const QuantizationCounter counter;
  auto h = torch::randn({5, 8});
  for (int i = 0; i < 5; ++i) h = torch::tanh(model->forward(h));
  h.sum().backward();
  CHECK(counter.of(model->fc->weight) == 1);
}

TEST_CASE("a weight that is computed anew for each step does not pile up codes", "[guard][codes]") {
  OneLayer model;
  const auto before = held_codes();
  const AutocastGuard guard(model, Mode::QAT);
  const auto v = torch::randn({4, 8}).set_requires_grad(true);
  for (int i = 0; i < 20; ++i) {
    model->fc->weight = v * 2;
    model->forward(torch::randn({5, 8})).sum().backward();
  }
  CHECK(v.grad().defined());
  CHECK(calls_of(guard, "fc") == 20);
  CHECK(held_codes() <= before + 2);
}

TEST_CASE("a model whose weight was frozen inside goes when its owner lets it go", "[guard][codes]") {
  c10::weak_intrusive_ptr<c10::TensorImpl> weight(torch::randn({1}).getIntrusivePtr());
  const auto before = held_codes();
  {
    OneLayer model;
    weight = c10::weak_intrusive_ptr<c10::TensorImpl>(model->fc->weight.getIntrusivePtr());
    const AutocastGuard guard(model, Mode::QAT);
    model->forward(torch::randn({5, 8})).sum().backward();
    model->fc->weight.set_requires_grad(false);
  }
  CHECK(weight.expired());
  CHECK(held_codes() == before);
}

TEST_CASE("a QuantizedLinear by itself leaves nothing behind", "[guard][codes]") {
  const auto before = held_codes();
  for (int i = 0; i < 3; ++i) {
    nn::Linear linear(8, 4);
    te_int8::QuantizedLinear layer(linear.ptr());
    layer(torch::randn({5, 8}));
    CHECK(held_codes() == before + 1);
  }
  CHECK(held_codes() == before);
}
