// Operations that leave the codes of what they make: nobody can tell by the numbers, only by time and memory.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// Three layers read what the norm gives, one what the function gives.
struct BranchesImpl : nn::Module {
  BranchesImpl(int64_t width, Function function, bool affine)
      : norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({width}).elementwise_affine(affine)))),
        a(register_module("a", nn::Linear(width, width))),
        b(register_module("b", nn::Linear(width, width))),
        c(register_module("c", nn::Linear(width, width))),
        last(register_module("last", nn::Linear(width, width))),
        f(std::move(function)) {}
  Tensor forward(const Tensor& x) {
    const auto y = norm(x);
    return x + last(f(a(y) + b(y) * c(y)));
  }
  nn::LayerNorm norm;
  nn::Linear a, b, c, last;
  Function f;
};
TORCH_MODULE(Branches);

/// y, and the gradients of x and of all parameters.
std::vector<Tensor> step(nn::Module& model, const std::function<Tensor(const Tensor&)>& forward, const Tensor& x) {
  model.zero_grad();
  const auto leaf = x.detach().clone().requires_grad_();
  const auto y = forward(leaf);
  y.backward(torch::ones_like(y) * 0.5);
  std::vector<Tensor> results{y.detach(), leaf.grad()};
  for (const auto& parameter : model.parameters()) results.push_back(parameter.grad());
  return results;
}

/// The node that gives y, behind views of it.
std::string maker_of(const Tensor& y) { return y.grad_fn()->name(); }

}  // namespace

TEST_CASE("codes that come with an activation change no bit of a step", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto dtype = GENERATE(at::kFloat, at::kHalf, at::kBFloat16);
  const auto width = GENERATE(64, 528, 4096);
  const auto recipe = GENERATE(Recipe::qat(), Recipe::switchback(), Recipe::int8_training());
  for (const auto& [name, f] : functions()) {
    for (const bool affine : {true, false}) {
      CAPTURE(name, dtype, width, affine);
      torch::manual_seed(201);
      Branches model(width, f, affine);
      if (affine) {
        const torch::NoGradGuard no_grad;
        model->norm->weight.normal_(1, 0.2);
        model->norm->bias.normal_(0, 0.2);
      }
      model->to(dtype);
      const auto x = torch::randn({3, 7, width}).to(dtype) * 3;
      const auto forward = [&](const Tensor& leaf) { return model->forward(leaf); };
      const AutocastGuard guard(model, Mode::QAT, recipe);
      const auto first = step(*model, forward, x);
      for (int again = 0; again < 3; ++again) {
        const auto later = step(*model, forward, x);
        REQUIRE(later.size() == first.size());
        for (std::size_t i = 0; i < first.size(); ++i) {
          CAPTURE(again, i);
          REQUIRE(same(later[i], first[i]));
        }
      }
      if (affine) CHECK(line_of(guard.report(), "norm").reason.find("results came with codes for the next layer") != std::string::npos);
      const torch::NoGradGuard no_grad;
      REQUIRE(same(model->forward(x), first[0]));
      REQUIRE(same(model->forward(x), first[0]));
    }
  }
}

TEST_CASE("functions are LibTorch's, bit for bit, for every value of 16 bits", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto dtype = GENERATE(at::kHalf, at::kBFloat16);
  // A row each of 256 values; those with a NaN or an infinity have no codes, but values.
  const auto bits = torch::arange(-32768, 32768, at::kInt).to(at::kShort).view({256, 256});
  const auto x = bits.view(dtype);
  nn::Linear layer(256, 16);
  layer->to(dtype);
  for (const auto& [name, f] : functions()) {
    CAPTURE(name, dtype);
    const auto expected = f(x);
    const AutocastGuard guard(layer, Mode::QAT);
    for (int i = 0; i < 2; ++i) layer->forward(f(x));  // only the second comes after this layer
    const auto leaf = x.detach().clone().requires_grad_();
    const auto y = f(leaf);
    CHECK_THAT(maker_of(y), Catch::Matchers::ContainsSubstring("ActivationFunction"));
    CHECK(same(y, expected));
    layer->forward(y);
  }
}

TEST_CASE("an activation that no quantized layer reads is LibTorch's own", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  nn::Linear layer(64, 64);
  const AutocastGuard guard(layer, Mode::QAT);
  at::gelu(layer->forward(torch::randn({4, 64})));
  for (int i = 0; i < 3; ++i) {
    const auto x = layer->forward(torch::randn({4, 64}));
    CHECK(maker_of(at::gelu(x)) == "GeluBackward0");
    CHECK(maker_of(at::gelu(x.t())) == "GeluBackward0");  // nor one that the kernels do not read
  }
  const auto used = [&] {
    const auto y = at::gelu(layer->forward(torch::randn({4, 64})));
    layer->forward(y);
    return maker_of(y);
  };
  CHECK(used() == "GeluBackward0");
  CHECK_THAT(used(), Catch::Matchers::ContainsSubstring("ActivationFunction"));
  at::gelu(layer->forward(torch::randn({4, 64})));
  CHECK(used() == "GeluBackward0");  // the last one was not read
}

TEST_CASE("gradients of gradients pass a function with codes", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  nn::Linear layer(64, 64);
  const AutocastGuard guard(layer, Mode::QAT);
  for (int i = 0; i < 2; ++i) layer->forward(at::silu(torch::randn({4, 64})));
  const auto x = torch::randn({4, 64}).requires_grad_();
  const auto second = [&](const Tensor& y) {
    const auto dx = torch::autograd::grad({y.square().sum()}, {x}, {}, true, true)[0];
    return torch::autograd::grad({dx.square().sum()}, {x})[0];
  };
  const auto y = at::silu(x);
  REQUIRE_THAT(maker_of(y), Catch::Matchers::ContainsSubstring("ActivationFunction"));
  layer->forward(y);
  CHECK(torch::allclose(second(y), second(x * torch::sigmoid(x)), 1e-4, 1e-5));
}

TEST_CASE("a layer holds no codes that its activation's backward holds anyway", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  constexpr int64_t kRows = 1024, kWidth = 1024;
  Branches model(kWidth, functions()[1].second, true);
  model->to(at::kBFloat16);
  const auto x = torch::randn({kRows, kWidth}).to(at::kBFloat16).requires_grad_();
  const auto held = [&] {
    const auto before = bytes_in_use();
    const auto y = model->forward(x);
    return bytes_in_use() - before;
  };
  const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training());
  for (int i = 0; i < 2; ++i) held();  // codes of the weights; and what is read after this model's last layer
  // y, the products' two factors, their sum; the norm's mean and deviation; the function's scales and inverses. No codes.
  CHECK(held() <= 4 * 2 * kRows * kWidth + 4 * 4 * kRows + 4096 + 2 * 2 * kWidth);
}

TEST_CASE("a norm leaves codes under autocast too", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  torch::manual_seed(204);
  nn::Linear layer(64, 64);
  nn::LayerNorm norm(nn::LayerNormOptions({64}));
  const auto x = torch::randn({2, 8, 64}).to(dtype).requires_grad_();
  const AutocastGuard guard(layer, Mode::QAT, Recipe::int8_training());
  const Bf16Autocast autocast;
  const auto gradient = [&](const Tensor& z) { return torch::autograd::grad({z.sum()}, {layer->weight})[0]; };
  for (int i = 0; i < 4; ++i) {
    const QuantizationCounter counter;
    const auto y = norm(x);
    const auto z = layer->forward(y);
    const int quantized = counter.of(y);
    if (i >= 2) CHECK(quantized == 0);  // what comes after this layer is known from its second call on
    CHECK(y.scalar_type() == at::kFloat);
    CHECK(same(z.detach(), int8_result(y, layer->weight, layer->bias, at::kBFloat16)));
    const auto copy = y.detach().clone();
    CHECK(same(gradient(z), gradient(layer->forward(copy))));
    layer->forward(norm(x));  // so that what is read last is this norm's again
  }
}

TEST_CASE("what is written between a function, its reader and the backward is seen", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  torch::manual_seed(203);
  nn::Linear layer(64, 64);
  nn::LayerNorm norm(nn::LayerNormOptions({64}));
  const AutocastGuard guard(layer, Mode::QAT, Recipe::int8_training());
  const auto x = torch::randn({8, 64});
  for (int i = 0; i < 2; ++i) {
    layer->forward(at::gelu(x.clone().requires_grad_()));
    layer->forward(norm(x.clone().requires_grad_()));
  }
  const auto fresh = [&](const Tensor& y) { return same(layer->forward(y).detach(), int8_result(*layer, y)); };
  SECTION("a function's result, by .data()") {
    const auto y = at::gelu(x.clone().requires_grad_());
    y.data().mul_(torch::full_like(y, 3));
    CHECK(fresh(y));
  }
  SECTION("a function's input") {
    const auto h = x.clone();
    const auto y = at::gelu((h + 0).requires_grad_());
    CHECK(fresh(y));
    const auto leaf = x.clone().requires_grad_(), inner = leaf + 0;
    const auto z = at::gelu(inner);
    inner.add_(1);
    const auto dw = torch::autograd::grad({layer->forward(z).sum()}, {layer->weight})[0];
    const auto plain = torch::autograd::grad({layer->forward(z.detach().clone()).sum()}, {layer->weight})[0];
    CHECK(same(dw, plain));
  }
  SECTION("a norm's weight, by SGD") {
    const auto y = norm(x.clone().requires_grad_());
    const auto loss = layer->forward(y).sum();
    const auto expected = torch::autograd::grad({layer->forward(y.detach().clone()).sum()}, {layer->weight})[0];
    norm->weight.mutable_grad() = torch::ones_like(norm->weight);
    torch::optim::SGD(norm->parameters(), 0.5).step();
    CHECK(same(torch::autograd::grad({loss}, {layer->weight})[0], expected));
  }
}

TEST_CASE("nested tensors pass a scope's operations", "[guard]") {
  nn::Linear layer(64, 64);
  const auto list = std::vector<Tensor>{torch::randn({2, 64}), torch::randn({3, 64})};
  const AutocastGuard guard(layer, Mode::Inference);
  const torch::NoGradGuard no_grad;
  const c10::impl::ExcludeDispatchKeyGuard own_devices(kTestKey);  // a nested tensor's sizes are on the CPU
  CHECK(at::relu(at::_nested_tensor_from_tensor_list(list)).is_nested());
}

TEST_CASE("functions of inference tensors are read as they are", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  nn::Linear layer(64, 64);
  const AutocastGuard guard(layer, Mode::Inference);
  const c10::InferenceMode inference_mode;
  const auto x = torch::randn({4, 64});
  for (int i = 0; i < 3; ++i) {
    const auto y = at::gelu(x);
    CHECK(same(layer->forward(y), int8_result(*layer, y)));
  }
}

TEST_CASE("preactivations may be held as codes", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  for (const std::size_t kind : {0, 1, 3}) {
    const auto& [name, f] = functions()[kind];
    CAPTURE(name, dtype);
    torch::manual_seed(202);
    nn::Linear in(64, 1024), out(1024, 64);
    for (auto* layer : {&in, &out}) (*layer)->to(dtype);
    nn::Sequential model(in, out);
    const auto x = torch::randn({128, 64}).to(dtype);
    const auto forward = [&, &g = f](const Tensor& leaf) { return out->forward(g(in->forward(leaf))); };
    std::vector<Tensor> expected;
    int64_t bytes = 0;
    const auto run = [&](Precision preactivations) {
      te_int8::refresh(*model);
      const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training().preactivations(preactivations));
      auto first = step(*model, forward, x);
      for (int again = 0; again < 3; ++again) {
        const auto later = step(*model, forward, x);
        for (std::size_t i = 0; i < first.size(); ++i) REQUIRE(same(later[i], first[i]));
      }
      const auto leaf = x.clone().requires_grad_();
      forward(leaf);
      te_int8::refresh(*model);  // the scope holds nothing of it
      const auto before = bytes_in_use();
      const auto y = forward(leaf);
      bytes = bytes_in_use() - before;
      return first;
    };
    expected = run(Precision::Full);
    const auto bytes_in_full = bytes;
    const auto got = run(Precision::Int8);
    CHECK(same(got[0], expected[0]));  // the forward is the same
    for (std::size_t i = 1; i < got.size(); ++i) {
      CHECK(relative_error(got[i], expected[i]) < 0.03);
    }
    {
      const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training().preactivations(Precision::Int8));
      const auto leaf = x.clone().requires_grad_();
      const auto dx = torch::autograd::grad({forward(leaf).square().sum()}, {leaf}, {}, true, true)[0];
      CHECK_THAT(
          error_of([&] { torch::autograd::grad({dx.square().sum()}, {leaf}); }),
          Catch::Matchers::ContainsSubstring("expected a first-order backward"));
    }
    CHECK(bytes_in_full - bytes >= 128 * 1024 * (static_cast<int64_t>(x.element_size()) - 1) - 128 * 4 - 1024);
  }
}
