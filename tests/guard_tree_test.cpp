// What a program sees of its model inside a scope and after it: the tree, parameters, names, saved
// bytes, and what it may do to the model meanwhile.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

bool is_quantized(const std::shared_ptr<nn::Module>& module) {
  return std::dynamic_pointer_cast<te_int8::QuantizedLinearImpl>(module) != nullptr;
}

std::size_t quantized_modules(const nn::Module& model) {
  std::size_t count = 0;
  for (const auto& module : model.modules(/*include_self=*/false)) count += is_quantized(module);
  return count;
}

/// A Linear of the user's own kind.
struct ScaledLinearImpl : nn::LinearImpl {
  using LinearImpl::LinearImpl;
  Tensor forward(const Tensor& x) { return LinearImpl::forward(x) * factor; }
  double factor = 3;
};
TORCH_MODULE(ScaledLinear);

struct HasScaledImpl : nn::Module {
  HasScaledImpl() { fc = register_module("fc", ScaledLinear(8, 4)); }
  ScaledLinear fc{nullptr};
};
TORCH_MODULE(HasScaled);

}  // namespace

TEST_CASE("parameters, names, saved bytes and optimizers are the original's inside", "[guard][tree]") {
  Mlp model;
  const Snapshot before(*model);
  const auto bytes = saved_bytes(model.ptr());
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  const auto x = torch::randn({3, 16});
  const auto output = model(x);
  {
    const AutocastGuard guard(model, Mode::QAT);
    CHECK(before.holds_parameters(*model));
    CHECK_FALSE(before.holds_tree(*model));
    CHECK(saved_bytes(model.ptr()) == bytes);
    CHECK(model->named_modules().keys() == std::vector<std::string>{"", "fc1", "fc2", "head"});
    CHECK(model->modules().size() == 4);
    const auto parameters = model->parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      CHECK(parameters[i].is_same(optimizer.param_groups()[0].params()[i]));
    }
  }
  CHECK(before.holds(*model));
  CHECK(same(model(x), output));
  CHECK(saved_bytes(model.ptr()) == bytes);
}

TEST_CASE("printing and apply show the quantized layers inside, and the old ones after", "[guard][tree]") {
  Mlp model;
  const auto plain = printed(*model);
  {
    const AutocastGuard guard(model, Mode::QAT);
    CHECK(quantized_modules(*model) == 3);
    CHECK(printed(*model).find("te_int8::QuantizedLinear(in_features=16, out_features=32, bias=true)") !=
          std::string::npos);
    int linears = 0;
    model->apply([&](nn::Module& module) { linears += module.as<nn::Linear>() != nullptr; });
    CHECK(linears == 3);
    model->apply([](nn::Module& module) {
      if (auto* linear = module.as<nn::Linear>()) nn::init::constant_(linear->weight, 0.5);
    });
    CHECK(model->fc1->weight.eq(0.5).all().item<bool>());
  }
  CHECK(printed(*model) == plain);
  CHECK(quantized_modules(*model) == 0);
}

TEST_CASE("opening and closing a scope draws no random numbers", "[guard][tree]") {
  Mlp model;
  torch::manual_seed(3);
  const auto expected = torch::randn({4});
  torch::manual_seed(3);
  { const AutocastGuard guard(model, Mode::QAT); }
  CHECK(same(torch::randn({4}), expected));
}

TEST_CASE("to, train, eval and zero_grad inside reach the original", "[guard][tree]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  {
    const AutocastGuard guard(model, Mode::QAT);
    model(x).sum().backward();
    CHECK(model->fc1->weight.grad().defined());
    model->zero_grad();
    CHECK_FALSE(model->fc1->weight.grad().defined());
    model->eval();
    CHECK_FALSE(model->fc1->is_training());
    model->to(torch::kDouble);
    CHECK(model->fc1->weight.scalar_type() == torch::kDouble);
    CHECK(same(model->fc1(x.to(torch::kDouble)).detach(), int8_result(*model->fc1, x.to(torch::kDouble))));
    CHECK(calls_of(guard, "fc1") == 2);
  }
  CHECK(model->fc2->bias.scalar_type() == torch::kDouble);
  CHECK_FALSE(model->fc1->is_training());
}

TEST_CASE("the tree shows the training flag of the layer, whoever has set it", "[guard][tree]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  const auto shown = [&] { return model->named_children()["fc"]->is_training(); };
  SECTION("through the typed member") {
    model->fc->eval();
    CHECK_FALSE(shown());
  }
  SECTION("through the tree of an inner scope") {
    {
      const AutocastGuard inner(model, Mode::Inference);
      model->eval();
    }
    CHECK_FALSE(shown());
  }
  SECTION("inside a scope in full precision") {
    {
      const AutocastGuard inner(model, Mode::Off);
      model->eval();
    }
    CHECK_FALSE(shown());
  }
}

TEST_CASE("containers run and show their quantized layers", "[guard][tree]") {
  const auto x = torch::randn({3, 8});
  SECTION("Sequential") {
    nn::Sequential model(nn::Linear(8, 8), nn::ReLU(), nn::Linear(8, 4));
    const auto output = model->forward(x);
    {
      const AutocastGuard guard(model, Mode::QAT);
      CHECK(quantized_modules(*model) == 2);
      CHECK_FALSE(same(model->forward(x), output));
      CHECK(all_calls(guard) == 2);
      CHECK(model->at<nn::LinearImpl>(2).options.out_features() == 4);
    }
    CHECK(same(model->forward(x), output));
  }
  SECTION("ModuleList") {
    nn::ModuleList model(nn::Linear(8, 8), nn::Linear(8, 8));
    const AutocastGuard guard(model, Mode::QAT);
    auto y = x;
    for (const auto& module : *model) y = module->as<nn::Linear>()->forward(y);
    CHECK(quantized_modules(*model) == 2);
    CHECK(all_calls(guard) == 2);
  }
  SECTION("ModuleDict") {
    nn::ModuleDict model;
    model->update({{"a", nn::Linear(8, 8).ptr()}, {"b", nn::Linear(8, 8).ptr()}});
    const AutocastGuard guard(model, Mode::QAT);
    model["b"]->as<nn::Linear>()->forward(x);
    CHECK(quantized_modules(*model) == 2);
    CHECK(calls_of(guard, "b") == 1);
  }
}

TEST_CASE("a module that is registered twice stays one", "[guard][tree]") {
  auto model = std::make_shared<nn::Module>();
  auto inner = std::make_shared<nn::Module>();
  nn::Linear shared(8, 4);
  model->register_module("a", shared);
  model->register_module("b", shared);
  inner->register_module("c", shared);
  model->register_module("inner", inner);
  model->register_module("again", inner);
  const Snapshot before(*model);
  const auto bytes = saved_bytes(model);
  {
    const AutocastGuard guard(model, Mode::QAT);
    const auto children = model->named_children();
    CHECK(is_quantized(children["a"]));
    CHECK(children["a"] == children["b"]);
    CHECK(children["a"] == inner->named_children()["c"]);
    CHECK(guard.report().layers.size() == 1);
    CHECK(saved_bytes(model) == bytes);
    shared(torch::randn({2, 8}));
    CHECK(calls_of(guard, "a") == 1);
  }
  CHECK(before.holds(*model));
}

TEST_CASE("a module that is registered twice is selected by any of its names", "[guard][tree]") {
  auto model = std::make_shared<nn::Module>();
  nn::Linear shared(8, 4);
  model->register_module("a", shared);
  model->register_module("b", shared);
  const AutocastGuard guard(model, Mode::QAT, Recipe().exclude({"b"}));
  CHECK(line_of(guard.report(), "a").action == "full precision");
}

TEST_CASE("the root may be a Linear, and lie on the stack", "[guard][tree]") {
  const auto x = torch::randn({3, 8});
  SECTION("a Linear on the heap") {
    nn::Linear model(8, 4);
    const AutocastGuard guard(model, Mode::QAT);
    CHECK(same(model(x).detach(), int8_result(*model, x)));
    CHECK(calls_of(guard, "") == 1);
    CHECK(line_of(guard.report(), "").reason.empty());
  }
  SECTION("a Linear on the stack") {
    nn::LinearImpl model(8, 4);
    const auto output = model.forward(x);
    {
      const AutocastGuard guard(model, Mode::QAT);
      CHECK(same(model.forward(x).detach(), int8_result(model, x)));
    }
    CHECK(same(model.forward(x), output));
  }
  SECTION("a model on the stack") {
    MlpImpl model;
    const Snapshot before(model);
    {
      const AutocastGuard guard(model, Mode::QAT);
      model.forward(torch::randn({3, 16}));
      CHECK(all_calls(guard) == 3);
      CHECK(quantized_modules(model) == 3);
    }
    CHECK(before.holds(model));
  }
}

TEST_CASE("a user's subclass of Linear keeps its type and is routed", "[guard][tree]") {
  HasScaled model;
  const auto x = torch::randn({3, 8});
  const auto child = model->named_children()["fc"];
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(model->named_children()["fc"] == child);
  CHECK(model->named_children()["fc"]->as<ScaledLinear>()->factor == 3);
  CHECK(same(model->fc->forward(x).detach(), int8_result(*model->fc, x) * 3));
  CHECK(calls_of(guard, "fc") == 1);
}

TEST_CASE("a clone made inside is full precision and not part of the scope", "[guard][tree]") {
  nn::Sequential model(nn::Linear(8, 8), nn::ReLU(), nn::Linear(8, 4));
  const auto x = torch::randn({3, 8});
  const auto output = model->forward(x);
  const AutocastGuard guard(model, Mode::QAT);
  const auto copy = std::dynamic_pointer_cast<nn::SequentialImpl>(model->clone());
  REQUIRE(copy != nullptr);
  CHECK(quantized_modules(*copy) == 0);
  CHECK(same(copy->forward(x), output));
  CHECK(all_calls(guard) == 0);
}

TEST_CASE("a checkpoint saved inside loads elsewhere", "[guard][tree]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  const auto output = model(x);
  std::stringstream stream;
  {
    const AutocastGuard guard(model, Mode::QAT);
    torch::save(model, stream);
  }
  Mlp other;
  torch::load(other, stream);
  CHECK(same(other(x), output));
}
