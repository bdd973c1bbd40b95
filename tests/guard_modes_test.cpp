// Modes and dtypes: QAT, Inference and Off; autocast, InferenceMode and grad mode; the layer that the
// scope puts into the tree, used by itself.
#include "guard_support.h"

using namespace te_int8_test;

TEST_CASE("QAT and Inference give the same bits", "[guard][modes]") {
  const auto shape = GENERATE(std::vector<int64_t>{3, 16}, std::vector<int64_t>{2, 3, 16});
  Mlp model;
  const auto x = torch::randn(shape);
  Tensor qat, inference;
  {
    const AutocastGuard guard(model, Mode::QAT);
    qat = model(x);
  }
  CHECK(qat.requires_grad());
  const torch::NoGradGuard no_grad;
  const AutocastGuard guard(model, Mode::Inference);
  CHECK(same(model(x), qat.detach()));
}

TEST_CASE("Mode::Inference raises where a graph would be needed, and records none", "[guard][modes]") {
  OneLayer model;
  const auto x = GENERATE(torch::randn({3, 8}), torch::randn({2, 3, 8}));
  const AutocastGuard guard(model, Mode::Inference);
  SECTION("a weight requires grad") {
    const auto message = error_of([&] { model(x); });
    CHECK(message.find("'fc'") != std::string::npos);
    CHECK(message.find("NoGradGuard") != std::string::npos);
    CHECK(message.find("a weight") != std::string::npos);
    CHECK(message.find("Mode::QAT") != std::string::npos);
  }
  SECTION("an input requires grad") {
    model->fc->weight.set_requires_grad(false);
    const auto message = error_of([&] { model(x.clone().set_requires_grad(true)); });
    CHECK(message.find("an input") != std::string::npos);
  }
  SECTION("only the bias requires grad: an error, or no graph") {
    model->fc->weight.set_requires_grad(false);
    Tensor y;
    const auto message = error_of([&] { y = model(x); });
    CHECK((message != "" || !y.requires_grad()));
  }
  SECTION("nothing requires grad") {
    model->fc->weight.set_requires_grad(false);
    model->fc->bias.set_requires_grad(false);
    CHECK_FALSE(model(x).requires_grad());
  }
  SECTION("without grad mode") {
    const torch::NoGradGuard no_grad;
    CHECK_FALSE(model(x).requires_grad());
  }
  SECTION("in InferenceMode") {
    const c10::InferenceMode inference_mode;
    CHECK(model(x).is_inference());
  }
}

TEST_CASE("Mode::Off inside a scope is full precision bit for bit", "[guard][modes]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  const auto plain = model(x);
  const AutocastGuard outer(model, Mode::QAT);
  const auto quantized = model(x);
  {
    const AutocastGuard off(model, Mode::Off);
    CHECK(same(model(x), plain));
    for (const auto& line : off.report().layers) CHECK(line.reason == "Mode::Off");
  }
  {
    const AutocastGuard off(model->fc2, Mode::Off);
    const auto hidden = torch::relu(int8_result(*model->fc1, x));
    const auto middle = torch::relu(torch::addmm(model->fc2->bias, hidden, model->fc2->weight.t()));
    CHECK(same(model(x).detach(), int8_result(*model->head, middle.detach())));
  }
  CHECK(same(model(x), quantized));
}

TEST_CASE("under autocast the output has the autocast dtype and the inputs' own values", "[guard][modes]") {
  const auto shape = GENERATE(std::vector<int64_t>{3, 8}, std::vector<int64_t>{2, 3, 8});
  const auto x_dtype = GENERATE(at::kFloat, at::kBFloat16, at::kHalf);
  const auto weight_dtype = GENERATE(at::kFloat, at::kBFloat16);
  CAPTURE(x_dtype, weight_dtype);
  OneLayer model;
  model->to(weight_dtype);
  const auto x = torch::randn(shape).to(x_dtype).set_requires_grad(true);
  const auto expected = int8_result(x, model->fc->weight, model->fc->bias, at::kBFloat16);
  const AutocastGuard guard(model, Mode::QAT);
  Tensor y;
  {
    const Bf16Autocast autocast;
    y = model(x);
  }
  CHECK(same(y.detach(), expected));
  y.sum().backward();
  CHECK(x.grad().scalar_type() == x_dtype);
  CHECK(model->fc->weight.grad().scalar_type() == weight_dtype);
  CHECK(model->fc->bias.grad().scalar_type() == weight_dtype);
}

TEST_CASE("autocast leaves double alone, as LibTorch's does", "[guard][modes]") {
  OneLayer model;
  model->to(torch::kDouble);
  const auto x = torch::randn({2, 3, 8}).to(torch::kDouble);
  const auto expected = int8_result(*model->fc, x);
  const AutocastGuard guard(model, Mode::QAT);
  const Bf16Autocast autocast;
  CHECK(same(model(x).detach(), expected));
}

TEST_CASE("autocast does not round the sums of scaled_mm", "[guard][modes]") {
  const auto a = torch::randint(-127, 128, {4, 300}, torch::kChar);
  const auto b = torch::randint(-127, 128, {5, 300}, torch::kChar);
  const auto expected = te_int8::ops::scaled_mm(a, b, {}, {}, {}, at::kInt);
  const Bf16Autocast autocast;
  CHECK(same(te_int8::ops::scaled_mm(a, b, {}, {}, {}, at::kInt), expected));
}

TEST_CASE("every precision and granularity of a recipe reaches the layer", "[guard][modes]") {
  OneLayer model;
  const auto x = torch::randn({3, 8});
  const auto plain = model(x).detach(), by_row = int8_result(*model->fc, x);
  const auto run = [&](const Recipe& recipe) {
    const AutocastGuard guard(model, Mode::QAT, recipe);
    const auto y = model(x).detach();
    CHECK(calls_of(guard, "fc") == 1);
    return y;
  };
  CHECK(same(run(Recipe::switchback()), by_row));
  CHECK(same(run(Recipe::int8_training()), by_row));
  CHECK(same(run(Recipe().output(Precision::Full).grad_weight(Precision::Int8)), plain));
  const auto [x_codes, x_scale] = te_int8::ops::quantize_rows(x, "tensor");
  const torch::NoGradGuard no_grad;
  const auto [w_codes, w_scale] = te_int8::ops::quantize_rows(model->fc->weight, "tensor");
  CHECK(same(run(Recipe().activations(te_int8::Granularity::per_tensor()).weights(te_int8::Granularity::per_tensor())),
             te_int8::ops::scaled_mm(x_codes, w_codes, x_scale, w_scale, model->fc->bias)));
}

TEST_CASE("a QuantizedLinear by itself computes what the scope's does", "[guard][modes]") {
  nn::Linear linear(8, 4);
  te_int8::QuantizedLinear layer(linear.ptr());
  const auto x = torch::randn({2, 3, 8}).set_requires_grad(true);
  const auto y = layer(x);
  CHECK(same(y.detach(), int8_result(*linear, x)));
  y.sum().backward();
  CHECK(linear->weight.grad().defined());
  CHECK(linear->bias.grad().defined());
  CHECK(x.grad().defined());
  const auto message = error_of([&] { layer(torch::randn({3, 7})); });
  CHECK(message.find("te_int8::QuantizedLinear: expected x [*, 8]") != std::string::npos);
  CHECK(message.find("[3, 7]") != std::string::npos);
}

TEST_CASE("the layer in the tree computes when it is called itself", "[guard][modes]") {
  OneLayer model;
  const auto x = torch::randn({2, 3, 8});
  const AutocastGuard guard(model, Mode::QAT);
  const auto layer = std::dynamic_pointer_cast<te_int8::QuantizedLinearImpl>(model->named_children()["fc"]);
  REQUIRE(layer != nullptr);
  CHECK(same(layer->forward(x).detach(), int8_result(*model->fc, x)));
  CHECK(same(layer->LinearImpl::forward(x).detach(), int8_result(*model->fc, x)));
  CHECK(calls_of(guard, "fc") == 2);
  CHECK(layer->original() == model->fc.ptr());
}

TEST_CASE("a QuantizedLinear refuses what it cannot do", "[guard][modes]") {
  CHECK(error_of([] { te_int8::QuantizedLinear(std::shared_ptr<nn::LinearImpl>()); })
            .find("te_int8::Quantized: expected a torch::nn::LinearImpl, got a null pointer") == 0);
  nn::Linear linear(8, 4);
  CHECK(error_of([&] { te_int8::QuantizedLinear(linear.ptr(), Mode::QAT, Recipe().exclude({"a"})); })
            .find("te_int8::QuantizedLinear: expected a recipe without include") == 0);
}

TEST_CASE("a QuantizedLinear in Mode::Off is full precision", "[guard][modes]") {
  nn::Linear linear(8, 4);
  te_int8::QuantizedLinear layer(linear.ptr(), Mode::Off);
  const auto x = torch::randn({3, 8});
  CHECK(same(layer(x), linear(x)));
}

TEST_CASE("a QuantizedLinear of the user's own is listed and left alone", "[guard][modes]") {
  nn::Linear linear(8, 4);
  te_int8::QuantizedLinear own(linear.ptr());
  nn::Sequential model(own, nn::Linear(4, 4));
  const auto x = torch::randn({3, 8});
  for (const auto mode : {Mode::QAT, Mode::Off}) {
    const AutocastGuard guard(model, mode);
    CHECK(model->named_children()["0"] == own.ptr());
    CHECK(line_of(guard.report(), "0").reason == "quantizes itself, whatever the scope says");
    CHECK(same(own(x).detach(), int8_result(*linear, x)));
  }
}

TEST_CASE("the layer in the tree is full precision for other threads and after the scope", "[guard][modes]") {
  OneLayer model;
  const auto x = torch::randn({2, 3, 8});
  const auto plain = model(x);
  std::shared_ptr<nn::LinearImpl> layer;
  {
    const AutocastGuard guard(model, Mode::QAT);
    layer = std::dynamic_pointer_cast<te_int8::QuantizedLinearImpl>(model->named_children()["fc"]);
    in_thread([&] {
      CHECK(same(std::static_pointer_cast<te_int8::QuantizedLinearImpl>(layer)->forward(x), plain));
    });
  }
  CHECK(same(std::static_pointer_cast<te_int8::QuantizedLinearImpl>(layer)->forward(x), plain));
}
