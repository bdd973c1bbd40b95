// Steps of training that LibTorch tells of and those that it does not: the codes of a weight see both, and are made once a
// step where that is safe.
#include "warm_layer.h"

using namespace te_int8_test;

TEST_CASE("the micro-batches of a step share a weight's codes, and see the next step", "[guard][codes]") {
  const bool adam = GENERATE(true, false);
  CAPTURE(adam);
  Warm w;
  torch::optim::Adam other(w.model->parameters(), torch::optim::AdamOptions(0.1));
  const AutocastGuard guard(w.model, Mode::QAT);
  for (int step = 0; step < 4; ++step) {
    {
      const QuantizationCounter counter;
      for (int micro_batch = 0; micro_batch < 3; ++micro_batch) w.backward();
      // That steps can be seen is known after the first.
      CHECK(counter.of(w.weight()) == (step > 0 ? 1 : 3));
    }
    CHECK(w.fresh());
    if (adam) {
      other.step();
    } else {
      w.sgd.step();
    }
    if (step % 2 == 0) w.sgd.zero_grad();
    if (step == 2) CHECK(w.fresh());
    if (step == 2) w.weight().mutable_grad() = torch::ones_like(w.weight());
    if (step == 2) w.sgd.step();
  }
  CHECK(w.fresh());
}

TEST_CASE("a visible change before any gradient is no reason to trust SGD outside of a scope", "[guard][codes]") {
  nn::Linear layer(8, 4);
  const auto x = torch::randn({5, 8});
  te_int8::QuantizedLinear quantized(layer.ptr());
  torch::optim::SGD sgd(layer->parameters(), 0.5);
  quantized->forward(x);
  {
    const torch::NoGradGuard no_grad;
    layer->weight.copy_(torch::randn({4, 8}));
  }
  for (int step = 0; step < 3; ++step) {
    sgd.zero_grad();
    const auto y = quantized->forward(x);
    CHECK(same(y.detach(), int8_result(*layer, x)));
    y.sum().backward();
    sgd.step();
  }
  CHECK(same(quantized->forward(x).detach(), int8_result(*layer, x)));
}

TEST_CASE("refresh forgets that a weight's steps could be seen", "[guard][codes]") {
  Warm w;
  const AutocastGuard guard(w.model, Mode::QAT);
  const auto unseen_step = [&] {
    w.backward();
    std::thread([&] { w.sgd.step(); }).join();  // in no scope
  };
  for (int step = 0; step < 2; ++step) {
    w.backward();
    w.sgd.step();
  }
  unseen_step();
  te_int8::refresh(*w.model);
  CHECK(w.fresh());
  unseen_step();
  CHECK(w.fresh());
}

TEST_CASE("in-place operations on .data() are seen in a scope", "[guard][codes]") {
  const auto write = GENERATE(
      +[](Tensor data) { data.add_(torch::ones_like(data)); }, +[](Tensor data) { data.sub_(torch::ones_like(data)); },
      +[](Tensor data) { data.mul_(torch::full_like(data, 3)); }, +[](Tensor data) { data.mul_(3); },
      +[](Tensor data) { data.lerp_(torch::ones_like(data), 0.5); }, +[](Tensor data) { data.copy_(torch::ones_like(data)); });
  Warm w;
  const AutocastGuard guard(w.model, Mode::QAT);
  w.forward();
  write(w.weight().data());
  CHECK(w.fresh());
  write(w.weight().data()[1]);
  CHECK(w.fresh());
}

TEST_CASE("an attached thread that calls no layer is seen when it writes through .data()", "[guard][codes]") {
  Warm w;
  w.weight().set_requires_grad(false);
  const AutocastGuard guard(w.model, Mode::QAT);
  w.forward();
  std::thread([&] {
    const auto attachment = guard.attach();
    w.weight().data().copy_(torch::ones({4, 8}));
  }).join();
  CHECK(w.fresh());
}

TEST_CASE("a weight may get data of another shape after it has had a gradient", "[guard][codes]") {
  nn::Linear layer(nn::LinearOptions(8, 4).bias(false));
  const auto x = torch::randn({5, 8});
  const AutocastGuard guard(layer, Mode::QAT);
  layer(x).sum().backward();
  layer->zero_grad();
  layer->weight.set_data(torch::randn({6, 8}));
  const auto y = layer(x);
  CHECK(same(y.detach(), int8_result(*layer, x)));
  y.sum().backward();
  CHECK(layer->weight.grad().sizes() == at::IntArrayRef({6, 8}));
}

TEST_CASE("scopes leave a weight's gradient accumulator as it is", "[guard][codes]") {
  OneLayer model;
  const auto accumulator = torch::autograd::impl::grad_accumulator(model->fc->weight);
  for (int i = 0; i < 3; ++i) {
    const AutocastGuard guard(model, Mode::QAT);
    model->forward(torch::randn({5, 8}));
  }
  CHECK(accumulator->post_hooks().empty());
  CHECK(accumulator->tensor_pre_hooks().empty());
}

TEST_CASE("a hook of the user's on gradients stays, and steps are seen beside it", "[guard][codes]") {
  struct Hook final : torch::autograd::PostAccumulateGradHook {
    explicit Hook(int* counted) : calls(counted) {}
    void operator()(const Tensor&) override { ++*calls; }
    int* calls;
  };
  Warm w;
  int calls = 0;
  torch::autograd::impl::set_post_acc_grad_hooks(w.weight(), std::make_unique<Hook>(&calls));
  const AutocastGuard guard(w.model, Mode::QAT);
  for (int i = 0; i < 3; ++i) {
    w.backward();
    w.sgd.step();
    w.sgd.zero_grad();
    CHECK(w.fresh());
  }
  CHECK(calls == 3);
}

TEST_CASE("a weight that is frozen for an evaluation between backward and step is read again", "[guard][codes]") {
  Warm w;
  const AutocastGuard guard(w.model, Mode::QAT);
  const auto evaluate = [&] {
    w.weight().set_requires_grad(false);
    const bool fresh = w.fresh();
    w.weight().set_requires_grad(true);
    return fresh;
  };
  w.backward();
  CHECK(evaluate());
  w.sgd.step();
  w.sgd.zero_grad();
  CHECK(evaluate());
}

TEST_CASE("an alias that writes and goes is not forgotten", "[guard][codes]") {
  Warm w;
  const AutocastGuard guard(w.model, Mode::QAT);
  {
    const auto alias = w.weight().data();
    w.forward();
    alias.mul_(3);
  }
  CHECK(w.fresh());
}

TEST_CASE("a call that is given an alias leaves no codes behind", "[guard][codes]") {
  Warm w;
  const AutocastGuard guard(w.model, Mode::QAT);
  const torch::NoGradGuard no_grad;
  const auto alias = w.weight().data();
  for (int i = 0; i < 2; ++i) {
    CHECK(same(torch::linear(w.x, alias), int8_result(w.x, w.weight(), {}, at::kFloat)));
    alias.mul_(3);
  }
}
