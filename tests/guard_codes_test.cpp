// The codes of weights: made once per state, never of a state that has passed, and
// gone when nobody needs them.
#include <functional>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// A layer in a scope around the whole test, warmed up by one forward.
struct Warm {
  OneLayer model;
  Tensor x = torch::randn({5, 8});
  torch::optim::SGD sgd{model->parameters(), torch::optim::SGDOptions(0.5)};
  Tensor alive;  ///< a graph that outlives a step

  Tensor& weight() { return model->fc->weight; }
  Tensor forward() { return model->forward(x); }
  void backward() { forward().pow(2).sum().backward(); }
  bool fresh() {
    const torch::NoGradGuard no_grad;
    return same(forward(), int8_result(*model->fc, x));
  }
};

struct Change {
  const char* how;
  std::function<void(Warm&)> make;
};

/// Ways to change a weight of which LibTorch, autograd or te_int8::refresh leave a sign.
std::vector<Change> changes() {
  return {
      {"an in-place operation without grad mode",
       [](Warm& w) {
         const torch::NoGradGuard no_grad;
         w.weight().mul_(2);
       }},
      {"an in-place operation on a detached view",
       [](Warm& w) { w.weight().detach()[0].mul_(2); }},
      {"set_data", [](Warm& w) { w.weight().set_data(torch::randn({4, 8})); }},
      {"set_data to another part of one storage",
       [](Warm& w) {
         const auto flat = torch::randn({64});
         w.weight().set_data(flat.narrow(0, 0, 32).view({4, 8}));
         w.forward();
         w.weight().set_data(flat.narrow(0, 32, 32).view({4, 8}));
       }},
      {"an assignment to the member", [](Warm& w) { w.weight() = torch::randn({4, 8}); }},
      {"a raw pointer, then refresh",
       [](Warm& w) {
         poke(w.weight(), 3, 50);
         te_int8::refresh(*w.model);
       }},
      {".data(), then refresh",
       [](Warm& w) {
         w.weight().data().mul_(3);
         te_int8::refresh(*w.model);
       }},
      {"a raw pointer to a weight that was assigned, then refresh",
       [](Warm& w) {
         w.weight() = torch::randn({4, 8});
         w.forward();
         poke(w.weight(), 3, 50);
         te_int8::refresh(*w.model);
       }},
      {"backward and SGD",
       [](Warm& w) {
         w.backward();
         w.sgd.step();
       }},
      {"backward, a forward, and SGD",
       [](Warm& w) {
         w.backward();
         w.forward();
         w.sgd.step();
       }},
      {"backward, SGD, a forward, SGD again",
       [](Warm& w) {
         w.backward();
         w.sgd.step();
         w.forward();
         w.sgd.step();
       }},
      {"a step in full precision inside",
       [](Warm& w) {
         const AutocastGuard off(w.model, Mode::Off);
         w.backward();
         w.sgd.step();
       }},
      {"a step in full precision inside, gradients cleared",
       [](Warm& w) {
         const AutocastGuard off(w.model, Mode::Off);
         w.backward();
         w.sgd.step();
         w.sgd.zero_grad();
       }},
      {"a step in full precision beside an INT8 graph that lives on, gradients cleared",
       [](Warm& w) {
         w.alive = w.forward();
         const AutocastGuard off(w.model, Mode::Off);
         w.backward();
         w.sgd.step();
         w.sgd.zero_grad();
       }},
      {"a thread that trains in full precision and clears its gradients",
       [](Warm& w) {
         in_thread([&] {
           w.backward();
           w.sgd.step();
           w.sgd.zero_grad();
         });
       }},
      {"a gradient that no layer made, and SGD",
       [](Warm& w) {
         w.weight().pow(2).sum().backward();
         w.sgd.step();
       }},
      {"a thread that trains in full precision",
       [](Warm& w) {
         in_thread([&] {
           w.backward();
           w.sgd.step();
         });
       }},
  };
}

}  // namespace

TEST_CASE("a forward sees that its weight has changed", "[guard][codes]") {
  for (const auto& change : changes()) {
    DYNAMIC_SECTION(change.how) {
      Warm w;
      const AutocastGuard guard(w.model, Mode::QAT);
      w.forward();
      change.make(w);
      CHECK(w.fresh());
    }
  }
}

TEST_CASE("a model made in InferenceMode, whose weights have no version, sees its weights change", "[guard][codes]") {
  const c10::InferenceMode inference_mode;
  Warm w;
  const AutocastGuard guard(w.model, Mode::Inference);
  w.forward();
  w.weight().mul_(2);
  CHECK(w.fresh());
}

TEST_CASE("codes of a frozen weight are not used after it was thawed and trained", "[guard][codes]") {
  Warm w;
  w.weight().set_requires_grad(false);
  {
    const AutocastGuard guard(w.model, Mode::QAT);
    w.forward();
  }
  w.weight().set_requires_grad(true);
  w.backward();
  w.sgd.step();
  w.sgd.zero_grad();
  const AutocastGuard guard(w.model, Mode::QAT);
  CHECK(w.fresh());
}

TEST_CASE("a weight is quantized once until it changes", "[guard][codes]") {
  Warm w;
  const AutocastGuard guard(w.model, Mode::QAT);
  const QuantizationCounter counter;
  for (int i = 0; i < 3; ++i) w.model->forward(torch::randn({2, 5, 8}));
  CHECK(counter.of(w.weight()) == 1);
  w.backward();
  CHECK(counter.of(w.weight()) == 1);
  w.sgd.step();
  w.sgd.zero_grad();
  w.forward();
  w.forward();
  CHECK(counter.of(w.weight()) == 2);
}

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

TEST_CASE("what InferenceMode has quantized can be trained with", "[guard][codes]") {
  TwoLayers model;
  const auto x = torch::randn({5, 8}).set_requires_grad(true);
  SECTION("the weight's codes in one scope") {
    const AutocastGuard guard(model, Mode::QAT);
    {
      const c10::InferenceMode inference_mode;
      model->first(torch::randn({5, 8}));
    }
    CHECK_NOTHROW(model->first(x).sum().backward());
  }
  SECTION("a frozen weight's codes in the next scope") {
    model->first->weight.set_requires_grad(false);
    {
      const c10::InferenceMode inference_mode;
      const AutocastGuard guard(model, Mode::Inference);
      model->first(torch::randn({5, 8}));
    }
    const AutocastGuard guard(model, Mode::QAT);
    CHECK_NOTHROW(model->first(x).sum().backward());
  }
  SECTION("an activation's codes") {
    const AutocastGuard guard(model, Mode::QAT);
    {
      const c10::InferenceMode inference_mode;
      model->first(x);
    }
    CHECK_NOTHROW(model->second(x).sum().backward());
  }
}

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

TEST_CASE("refresh leaves other models alone", "[guard][codes]") {
  Warm w, other;
  const AutocastGuard guard(w.model, Mode::QAT), other_guard(other.model, Mode::QAT);
  w.forward();
  const QuantizationCounter counter;
  te_int8::refresh(*other.model);
  w.forward();
  CHECK(counter.of(w.weight()) == 0);
}

TEST_CASE("a weight is quantized once in every context, by whole and by row", "[guard][codes]") {
  const std::string context = GENERATE("grad", "no grad", "inference", "autocast");
  CAPTURE(context);
  Warm w;
  nn::MultiheadAttention attention(nn::MultiheadAttentionOptions(16, 2));
  const AutocastGuard guard(w.model, Mode::QAT), attention_guard(attention, Mode::QAT);
  const QuantizationCounter counter;
  in_context(context, [&] {
    for (int i = 0; i < 3; ++i) {
      w.model->forward(torch::randn({5, 8}));
      w.model->forward(torch::randn({2, 5, 8}));
      torch::linear(torch::randn({5, 8}), w.weight());
      attention(torch::randn({5, 3, 16}), torch::randn({7, 3, 16}), torch::randn({7, 3, 16}));
    }
  });
  CHECK(counter.of(w.weight()) == 1);
  CHECK(counter.of(attention->in_proj_weight) == 1);
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
