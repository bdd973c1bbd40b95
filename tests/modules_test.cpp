// Types of modules that a program registers: which of their calls a scope catches, and what the report says of others.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// y = x D^T U^T + b: two weights without a Linear.
struct LowRankImpl : nn::Module {
  LowRankImpl(int64_t in, int64_t rank, int64_t out) {
    down = register_parameter("down", torch::randn({rank, in}));
    up = register_parameter("up", torch::randn({out, rank}));
    bias = register_parameter("bias", torch::randn({out}));
  }
  Tensor forward(const Tensor& x) { return nn::functional::linear(nn::functional::linear(x, down), up, bias); }
  Tensor down, up, bias;
};
TORCH_MODULE(LowRank);

/// A type derived from a registered one.
struct GatedLowRankImpl : LowRankImpl {
  GatedLowRankImpl() : LowRankImpl(16, 4, 8) { gate = register_parameter("gate", torch::randn({8})); }
  Tensor forward(const Tensor& x) { return LowRankImpl::forward(x) * gate; }
  Tensor gate;
};
TORCH_MODULE(GatedLowRank);

/// A weight for each of several experts, in one module.
struct ExpertsImpl : nn::Module {
  ExpertsImpl() {
    for (int i = 0; i < 3; ++i) weights.push_back(register_parameter(c10::str("w", i), torch::randn({8, 16})));
  }
  Tensor forward(const Tensor& x) { return x.matmul(weights[0].t()) + x.matmul(weights[2].t()); }
  std::vector<Tensor> weights;
};
TORCH_MODULE(Experts);

template <typename Layer>
struct HoldsImpl : nn::Module {
  explicit HoldsImpl(Layer layer) : fc(register_module("fc", std::move(layer))) {}
  Tensor forward(const Tensor& x) { return fc(x); }
  Layer fc;
};
template <typename Layer>
auto holding(Layer layer) {
  return std::make_shared<HoldsImpl<Layer>>(std::move(layer));
}

te_int8::Weights weights_of_low_rank(LowRankImpl& m) { return {{"down", m.down}, {"up", m.up, m.bias}}; }

const bool registered = [] {
  te_int8::register_module<LowRankImpl>(weights_of_low_rank);
  te_int8::register_module<ExpertsImpl>([](ExpertsImpl& m) {
    te_int8::Weights weights;
    for (std::size_t i = 0; i < m.weights.size(); ++i) weights.emplace_back(c10::str("expert", i), m.weights[i]);
    return weights;
  });
  return true;
}();

Tensor low_rank_in_int8(const LowRankImpl& m, const Tensor& x) {
  return int8_result(int8_result(x, m.down, {}, x.scalar_type()), m.up, m.bias, x.scalar_type());
}

}  // namespace

TEST_CASE("the weights of a registered type are caught, bit for bit", "[guard][modules]") {
  const auto shape = GENERATE(std::vector<int64_t>{6, 16}, std::vector<int64_t>{2, 3, 16}, std::vector<int64_t>{16});
  const auto context = GENERATE("grad", "no grad", "inference");
  REQUIRE(registered);
  const auto model = holding(LowRank(16, 4, 8));
  const Snapshot before(*model);
  const auto x = torch::randn(shape);
  const auto plain = model->forward(x);
  in_context(context, [&] {
    const AutocastGuard guard(model, Mode::QAT);
    CHECK(before.holds(*model));  // nothing takes its place in the tree
    CHECK(same(model->forward(x).detach(), low_rank_in_int8(*model->fc, x)));
    CHECK(calls_of(guard, "fc.down") == 1);
    CHECK(calls_of(guard, "fc.up") == 1);
    const auto up = line_of(guard.report(), "fc.up");
    CHECK(up.action == "quantized");
    CHECK(up.bias_fused);
    CHECK(up.type.find("LowRankImpl") != std::string::npos);
    CHECK(guard.report().layers.size() == 2);
  });
  CHECK(same(model->forward(x), plain));
}

TEST_CASE("gradients of a registered type are those of fake quantization", "[guard][modules]") {
  torch::manual_seed(5);
  LowRank model(16, 4, 8);
  const auto x = torch::randn({6, 16}).set_requires_grad(true);
  const std::vector<Tensor> inputs{x, model->down, model->up, model->bias};
  const auto truth = fake_quantized_linear(fake_quantized_linear(x, model->down, {}), model->up, model->bias);
  const auto expected = torch::autograd::grad({truth.sin().sum()}, inputs);
  Tensor loss;
  {
    const AutocastGuard guard(model, Mode::QAT);
    loss = model(x).sin().sum();
  }
  const auto got = torch::autograd::grad({loss}, inputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) CHECK(relative_error(got[i], expected[i]) < 1e-5);
}

TEST_CASE("globs and rules choose among the weights of a registered type", "[guard][modules]") {
  const auto model = holding(LowRank(16, 4, 8));
  const auto x = torch::randn({6, 16});
  const AutocastGuard guard(model, Mode::QAT, Recipe().exclude({"fc.down"}).rule("fc.up", Recipe::switchback()));
  const auto hidden = nn::functional::linear(x, model->fc->down);
  CHECK(same(model->forward(x).detach(), int8_result(hidden, model->fc->up, model->fc->bias, torch::kFloat)));
  CHECK(line_of(guard.report(), "fc.down").reason == "excluded");
  CHECK(error_of([&] { AutocastGuard(model, Mode::QAT, Recipe().exclude({"fc"})); }).find("fc.up") != std::string::npos);
}

TEST_CASE("a module may have any number of weights", "[guard][modules]") {
  Experts model;
  const auto x = torch::randn({5, 16});
  const AutocastGuard guard(model, Mode::QAT);
  const auto expected = int8_result(x, model->weights[0], {}, torch::kFloat) + int8_result(x, model->weights[2], {}, torch::kFloat);
  CHECK(same(model(x).detach(), expected));
  CHECK(calls_of(guard, "expert0") == 1);
  CHECK(calls_of(guard, "expert1") == 0);
  CHECK(calls_of(guard, "expert2") == 1);
}

TEST_CASE("a derived type keeps its type, and what it adds is reported", "[guard][modules]") {
  const auto model = holding(GatedLowRank());
  const auto x = torch::randn({6, 16});
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(same(model->forward(x).detach(), low_rank_in_int8(*model->fc, x) * model->fc->gate.detach()));
  const auto gate = line_of(guard.report(), "fc.gate");
  CHECK(gate.action == "full precision");
  CHECK(gate.reason == "a parameter that is not among the weights of its module's type");
}

TEST_CASE("a replacement shows in the tree, and goes with the scope", "[guard][modules]") {
  te_int8::register_module<LowRankImpl, te_int8::Quantized<LowRankImpl>>(weights_of_low_rank);
  const auto model = holding(LowRank(16, 4, 8));
  const Snapshot before(*model);
  const auto bytes = saved_bytes(model);
  const auto x = torch::randn({6, 16});
  const auto other = torch::randn({4, 16});
  {
    const AutocastGuard guard(model, Mode::QAT, Recipe().exclude({"fc.down"}));
    const auto shown = model->named_children()["fc"];
    auto* replacement = shown->as<LowRankImpl>();
    REQUIRE(replacement != nullptr);
    CHECK(replacement != model->fc.get());
    CHECK(printed(*model).find("te_int8::QuantizedLowRankImpl") != std::string::npos);
    CHECK(before.holds_parameters(*model));
    CHECK(saved_bytes(model) == bytes);
    const auto hidden = nn::functional::linear(x, model->fc->down);
    CHECK(same(replacement->forward(x).detach(), int8_result(hidden, model->fc->up, model->fc->bias, torch::kFloat)));
    shown->eval();
    CHECK_FALSE(model->fc->is_training());
    {
      const AutocastGuard inner(*model->fc, Mode::Off);
      CHECK(same(model->forward(x), nn::functional::linear(hidden, model->fc->up, model->fc->bias)));
    }
    replacement->up = torch::randn({8, 4});
    CHECK(same(replacement->forward(x).detach(), int8_result(hidden, replacement->up, model->fc->bias, torch::kFloat)));
    CHECK(model->fc->up.is_same(replacement->up));
    CHECK(calls_of(guard, "fc.up") == 2);
    replacement->down = other;
  }
  CHECK(model->fc->down.is_same(other));
  CHECK(before.holds_tree(*model));
  te_int8::register_module<LowRankImpl>(weights_of_low_rank);
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(before.holds_tree(*model));
}

TEST_CASE("an open scope keeps what it found when a type is registered again", "[guard][modules]") {
  const auto model = holding(LowRank(16, 4, 8));
  const auto x = torch::randn({6, 16});
  const AutocastGuard guard(model, Mode::QAT);
  te_int8::register_module<LowRankImpl>([](LowRankImpl& m) { return te_int8::Weights{{"only", m.up}}; });
  model->forward(x);
  CHECK(calls_of(guard, "fc.down") == 1);
  {
    const auto later = holding(LowRank(16, 4, 8));
    const AutocastGuard inner(later, Mode::QAT);
    later->forward(x);
    CHECK(calls_of(inner, "fc.only") == 1);
    CHECK(line_of(inner.report(), "fc.down").action == "full precision");
  }
  te_int8::register_module<LowRankImpl>(weights_of_low_rank);
}

TEST_CASE("a type that was not registered is in the report, and so is why", "[guard][modules]") {
  struct UnknownImpl : nn::Module {
    UnknownImpl() { w = register_parameter("w", torch::randn({4, 4})); }
    Tensor w;
  };
  nn::Sequential model(
      nn::Linear(4, 4), nn::LayerNorm(nn::LayerNormOptions({4})), nn::Embedding(3, 4), nn::LSTM(4, 4),
      nn::BatchNorm1d(4), nn::ConvTranspose2d(nn::ConvTranspose2dOptions(1, 1, 3)));
  model->register_module("unknown", std::make_shared<UnknownImpl>());
  const AutocastGuard guard(model, Mode::QAT);
  const auto report = guard.report();
  CHECK(line_of(report, "0").action == "quantized");
  for (const auto* name : {"1", "2", "3", "4", "5", "unknown"}) CHECK(line_of(report, name).action == "full precision");
  CHECK(line_of(report, "1").reason == "norms stay in full precision");
  CHECK(line_of(report, "3").reason.find("inside of one operation") != std::string::npos);
  CHECK(line_of(report, "unknown").reason.find("te_int8::register_module") != std::string::npos);
}

TEST_CASE("parameters that a derived type adds to LibTorch's are in the report", "[guard][modules]") {
  struct WithGateImpl : nn::LinearImpl {
    WithGateImpl() : LinearImpl(4, 4) { gate = register_parameter("gate", torch::ones({4})); }
    Tensor gate;
  };
  nn::Sequential model;
  model->register_module("fc", std::make_shared<WithGateImpl>());
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(line_of(guard.report(), "fc").action == "quantized");
  CHECK(line_of(guard.report(), "fc.gate").action == "full precision");
}

TEST_CASE("a module with children keeps its place in the tree", "[guard][modules]") {
  struct WithChildImpl : nn::Module {
    WithChildImpl() : w(register_parameter("w", torch::randn({4, 4}))), fc(register_module("fc", nn::Linear(4, 4))) {}
    Tensor w;
    nn::Linear fc;
  };
  te_int8::register_module<WithChildImpl, te_int8::Quantized<WithChildImpl>>(
      [](WithChildImpl& m) { return te_int8::Weights{{"w", m.w}}; });
  nn::Sequential model;
  const auto child = model->register_module("child", std::make_shared<WithChildImpl>());
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(model->named_children()["child"] == child);
  CHECK(child->named_children()["fc"] != child->fc.ptr());
  child->fc(torch::matmul(torch::randn({2, 4}), child->w.t()));
  CHECK(calls_of(guard, "child.w") == 1);
  CHECK(calls_of(guard, "child.fc") == 1);
}

TEST_CASE("weights that cannot be told apart are an error", "[guard][modules]") {
  struct TwinsImpl : nn::Module {
    TwinsImpl() : a(register_parameter("a", torch::randn({4, 4}))), b(register_parameter("b", torch::randn({4, 4}))) {}
    Tensor a, b;
  };
  const auto model = std::make_shared<TwinsImpl>();
  const auto error = [&] { return error_of([&] { AutocastGuard(model, Mode::QAT); }); };
  te_int8::register_module<TwinsImpl>([](TwinsImpl& m) { return te_int8::Weights{{"w", m.a}, {"w", m.b}}; });
  CHECK(error().find("to have different names") != std::string::npos);
  te_int8::register_module<TwinsImpl>([](TwinsImpl& m) { return te_int8::Weights{{"w", m.a, m.b, -1}}; });
  CHECK(error().find("bias_first below 0") != std::string::npos);
}
