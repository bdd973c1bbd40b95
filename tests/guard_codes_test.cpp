// The codes of weights: made once per state, never of a state that has passed.
#include <functional>

#include "warm_layer.h"

using namespace te_int8_test;

namespace {

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
