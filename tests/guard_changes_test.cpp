// A model that its owner changes while a scope is open: weights assigned or loaded, children
// replaced, layers added.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// The layer computes with the weight and bias that it has now, in INT8.
bool computes_with(OneLayer& model, const AutocastGuard& guard, const Tensor& weight, const Tensor& bias) {
  const auto x = torch::randn({2, 3, weight.size(1)});
  const auto calls = calls_of(guard, "fc");
  return same(model(x).detach(), int8_result(x, weight, bias, at::kFloat)) &&
         calls_of(guard, "fc") == calls + 1;
}

std::shared_ptr<nn::LinearImpl> shown_layer(const OneLayer& model) {
  return std::dynamic_pointer_cast<nn::LinearImpl>(model->named_children()["fc"]);
}

}  // namespace

TEST_CASE("a weight that is assigned inside is seen", "[guard][changes]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  model(torch::randn({3, 8}));
  auto weight = torch::randn({4, 8}), bias = model->fc->bias;
  SECTION("through the typed member") { model->fc->weight = weight; }
  SECTION("with its bias") {
    bias = torch::randn({4});
    model->fc->weight = weight;
    model->fc->bias = bias;
  }
  SECTION("twice") {
    model->fc->weight = torch::randn({4, 8});
    model(torch::randn({3, 8}));
    model->fc->weight = weight;
  }
  SECTION("in column-major order") {
    weight = torch::randn({8, 4}).t();
    model->fc->weight = weight;
  }
  SECTION("with another number of inputs") {
    weight = torch::randn({4, 6});
    model->fc->weight = weight;
  }
  SECTION("with another number of outputs") {
    weight = torch::randn({5, 8});
    bias = torch::randn({5});
    model->fc->weight = weight;
    model->fc->bias = bias;
  }
  SECTION("as the result of a computation") {
    weight = torch::randn({4, 8}).set_requires_grad(true) * 2;
    model->fc->weight = weight;
  }
  SECTION("as a part of a larger matrix") {
    weight = torch::randn({10, 8}).narrow(0, 3, 4);
    model->fc->weight = weight;
  }
  SECTION("by set_data") {
    model->fc->weight.set_data(weight);
    weight = model->fc->weight;
  }
  SECTION("by set_data, column-major") {
    model->fc->weight.set_data(torch::randn({8, 4}).t());
    weight = model->fc->weight;
  }
  SECTION("by load") {
    OneLayer other;
    std::stringstream stream;
    torch::save(other, stream);
    torch::load(model, stream);
    weight = other->fc->weight;
    bias = other->fc->bias;
  }
  SECTION("by vector_to_parameters") {
    const auto vector = torch::randn({36});
    nn::utils::vector_to_parameters(vector, model->parameters());
    weight = vector.narrow(0, 0, 32).view({4, 8});
    bias = vector.narrow(0, 32, 4);
  }
  CHECK(computes_with(model, guard, weight, bias));
}

TEST_CASE("a weight that is assigned through the tree is seen and outlives the scope", "[guard][changes]") {
  OneLayer model;
  const auto weight = torch::randn({4, 8}), bias = torch::randn({4}), x = torch::randn({3, 8});
  {
    const AutocastGuard guard(model, Mode::QAT);
    shown_layer(model)->weight = weight;
    shown_layer(model)->bias = bias;
    CHECK(same(shown_layer(model)->forward(x), int8_result(x, weight, bias, at::kFloat)));
    CHECK(calls_of(guard, "fc") == 1);
  }
  CHECK(model->fc->weight.is_same(weight));
  CHECK(same(model(x), torch::addmm(bias, x, weight.t())));
}

TEST_CASE("a weight that is assigned through the tree of an inner scope is seen by the outer", "[guard][changes]") {
  OneLayer model;
  const AutocastGuard outer(model, Mode::QAT);
  const auto weight = torch::randn({4, 8});
  {
    const AutocastGuard inner(model, Mode::QAT, Recipe::switchback());
    shown_layer(model)->weight = weight;
  }
  CHECK(computes_with(model, outer, weight, model->fc->bias));
}

TEST_CASE("weights that two layers exchange inside are seen", "[guard][changes]") {
  TwoLayers model;
  const auto x = torch::randn({2, 3, 8});
  const AutocastGuard guard(model, Mode::QAT);
  model->first(x);
  model->second(x);
  std::swap(model->first->weight, model->second->weight);
  CHECK(same(model->first(x).detach(), int8_result(*model->first, x)));
  CHECK(same(model->second(x).detach(), int8_result(*model->second, x)));
  CHECK(calls_of(guard, "first") == 2);
  CHECK(calls_of(guard, "second") == 2);
}

TEST_CASE("an assignment to one handle of a layer is one to both", "[guard][changes]") {
  OneLayer model;
  const auto x = torch::randn({2, 3, 8}), weight = torch::randn({4, 8});
  const AutocastGuard guard(model, Mode::QAT);
  const auto shown = shown_layer(model);
  SECTION("the typed member's") {
    model->fc->weight = weight;
    model(x);
    CHECK(shown->weight.is_same(weight));
  }
  SECTION("the tree's") {
    shown->weight = weight;
    shown->forward(x);
    CHECK(model->fc->weight.is_same(weight));
  }
  CHECK(same(model(x).detach(), int8_result(x, weight, model->fc->bias, at::kFloat)));
  CHECK(same(shown->forward(x).detach(), int8_result(x, weight, model->fc->bias, at::kFloat)));
  CHECK(calls_of(guard, "fc") == 3);
}

TEST_CASE("a gradient reaches what an assigned weight was computed from", "[guard][changes]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  const auto v = torch::randn({4, 8}).set_requires_grad(true);
  model->fc->weight = v * 2;
  model(torch::ones({3, 8})).sum().backward();
  REQUIRE(v.grad().defined());
  CHECK(torch::allclose(v.grad(), torch::full({4, 8}, 6.0F)));
}

TEST_CASE("a child that the user replaces inside is left alone", "[guard][changes]") {
  OneLayer model;
  const auto mine = std::make_shared<nn::LinearImpl>(8, 4);
  const auto shown = [&] { return model->named_children()["fc"]; };
  SECTION("in one scope") {
    {
      const AutocastGuard guard(model, Mode::QAT);
      model->replace_module("fc", mine);
    }
    CHECK(shown() == mine);
  }
  SECTION("before an inner scope") {
    {
      const AutocastGuard outer(model, Mode::QAT);
      model->replace_module("fc", mine);
      {
        const AutocastGuard inner(model, Mode::Inference);
        CHECK(line_of(inner.report(), "fc").action == "quantized");
      }
      CHECK(shown() == mine);
    }
    CHECK(shown() == mine);
  }
  SECTION("inside an inner scope") {
    {
      const AutocastGuard outer(model, Mode::QAT);
      {
        const AutocastGuard inner(model, Mode::Inference);
        model->replace_module("fc", mine);
      }
      CHECK(shown() == mine);
    }
    CHECK(shown() == mine);
  }
  SECTION("after the outer of two scopes has ended first") {
    auto outer = std::make_unique<AutocastGuard>(model, Mode::QAT);
    auto inner = std::make_unique<AutocastGuard>(model, Mode::Inference);
    outer.reset();
    model->replace_module("fc", mine);
    inner.reset();
    CHECK(shown() == mine);
  }
}

TEST_CASE("a child that the user removes inside stays away", "[guard][changes]") {
  OneLayer model;
  {
    const AutocastGuard guard(model, Mode::QAT);
    model->unregister_module("fc");
  }
  CHECK(model->children().empty());
}

TEST_CASE("a layer that is added inside is quantized by the next scope, not by this", "[guard][changes]") {
  OneLayer model;
  const auto x = torch::randn({3, 4});
  nn::Linear added(4, 4);
  const auto output = added(x);
  const AutocastGuard guard(model, Mode::QAT);
  model->register_module("added", added);
  CHECK(same(added(x), output));
  const AutocastGuard inner(model, Mode::QAT);
  CHECK(same(added(x).detach(), int8_result(*added, x)));
}

TEST_CASE("a view of the weight keeps its hooks", "[guard][changes]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  const auto transposed = model->fc->weight.t();
  int hooks = 0;
  transposed.register_hook([&](const Tensor& gradient) {
    ++hooks;
    return gradient * 0;
  });
  torch::randn({3, 8}).matmul(transposed).sum().backward();
  CHECK(calls_of(guard, "fc") == 1);
  CHECK(hooks == 1);
  CHECK(model->fc->weight.grad().count_nonzero().item<int64_t>() == 0);
}

TEST_CASE("a call through one handle sees the weight that the other was just given", "[guard][changes]") {
  OneLayer model;
  const auto weight = torch::randn({4, 8});
  const AutocastGuard guard(model, Mode::QAT);
  model(torch::randn({3, 8}));
  shown_layer(model)->weight = weight;
  CHECK(computes_with(model, guard, weight, model->fc->bias));
  CHECK(computes_with(model, guard, weight, model->fc->bias));
}

TEST_CASE("a weight that is a view may be moved away from its base", "[guard][changes]") {
  OneLayer model(8, 8);
  const auto flat = torch::randn({200}), x = torch::randn({3, 8});
  model->fc->weight = flat.narrow(0, 0, 64).view({8, 8});
  model->fc->weight.set_data(torch::randn({8, 8}));
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(computes_with(model, guard, model->fc->weight, model->fc->bias));
  CHECK(same(torch::mm(x, model->fc->weight), x.mm(model->fc->weight.clone())));
  CHECK(same(torch::mm(x, flat.narrow(0, 64, 64).view({8, 8})), x.mm(flat.narrow(0, 64, 64).view({8, 8}).clone())));
}

TEST_CASE("a former weight is not taken for the new one where it is no layer's operand", "[guard][changes]") {
  OneLayer model(8, 8);
  const auto former = model->fc->weight, x = torch::randn({3, 8});
  const AutocastGuard guard(model, Mode::QAT);
  shown_layer(model)->weight = torch::randn({8, 8});
  CHECK(same(torch::mm(x, former).detach(), torch::mm(x, former.detach().clone())));
}
