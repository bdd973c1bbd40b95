// Note [Deferred bias]: N-D inputs give the bits of 2-D inputs, the bias in the epilogue, and nobody
// can tell that the result of the matmul was owed for a moment.
#include <functional>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// x W^T as a program would write it; inside a scope and for N-D x its values are owed.
Tensor product(const OneLayer& model, const Tensor& x) { return x.matmul(model->fc->weight.t()); }

struct Use {
  const char* how;
  std::function<Tensor(Tensor y, const Tensor& bias)> apply;
};

/// First uses of a product that are not the addition of the layer's bias in place.
std::vector<Use> uses() {
  return {
      {"relu_", [](Tensor y, const Tensor&) { return y.relu_(); }},
      {"view", [](Tensor y, const Tensor&) { return y.view({-1}); }},
      {"transpose", [](Tensor y, const Tensor&) { return y.transpose(0, -1); }},
      {"index", [](Tensor y, const Tensor&) { return y[1]; }},
      {"chunk", [](Tensor y, const Tensor&) { return y.chunk(2, -1)[1]; }},
      {"cat", [](Tensor y, const Tensor&) { return torch::cat({y, y}); }},
      {"stack with another", [](Tensor y, const Tensor&) { return torch::stack({torch::ones_like(y), y}); }},
      {"addition of the bias, not in place", [](Tensor y, const Tensor& b) { return y + b; }},
      {"addition of twice the bias", [](Tensor y, const Tensor& b) { return y.add_(b, 2); }},
      {"addition of a copy of the bias", [](Tensor y, const Tensor& b) { return y.add_(b.clone()); }},
      {"addition of a part of the bias", [](Tensor y, const Tensor& b) { return y.add_(b[0]); }},
      {"addition to itself", [](Tensor y, const Tensor&) { return y.add_(y); }},
      {"addition to another", [](Tensor y, const Tensor&) { return torch::ones_like(y).add_(y); }},
      {"clone", [](Tensor y, const Tensor&) { return y.clone(); }},
      {"detach", [](Tensor y, const Tensor&) { return y.detach(); }},
      {"data", [](Tensor y, const Tensor&) { return y.data(); }},
      {"conversion", [](Tensor y, const Tensor&) { return y.to(torch::kDouble); }},
      {"another matmul", [](Tensor y, const Tensor&) { return y.matmul(torch::ones({4, 2}, y.options())); }},
      {"where", [](Tensor y, const Tensor&) { return torch::where(y > 0, y, torch::zeros_like(y)); }},
      {"out=",
       [](Tensor y, const Tensor&) {
         const torch::NoGradGuard no_grad;
         auto out = torch::empty({0}, y.options());
         return at::mul_out(out, y, y);
       }},
      {"set_data",
       [](Tensor y, const Tensor&) {
         auto holder = torch::empty_like(y).detach();
         holder.set_data(y);
         return holder;
       }},
      {"data_ptr",
       [](Tensor y, const Tensor&) {
         return torch::from_blob(y.data_ptr(), y.sizes(), y.options().requires_grad(false)).clone();
       }},
      {"storage",
       [](Tensor y, const Tensor&) {
         return torch::empty({0}, y.options()).set_(y.storage(), 0, y.sizes()).clone();
       }},
      {"torch::save",
       [](Tensor y, const Tensor&) {
         std::stringstream stream;
         torch::save(y, stream);
         Tensor loaded;
         torch::load(loaded, stream);
         return loaded;
       }},
      {"item",
       [](Tensor y, const Tensor&) { return torch::scalar_tensor(y.sum().to(torch::kFloat).item<float>()); }},
      {"copy_ into another", [](Tensor y, const Tensor&) { return torch::empty_like(y).copy_(y); }},
      {"another thread",
       [](Tensor y, const Tensor&) {
         Tensor z;
         in_thread([&] { z = y * 2; });
         return z;
       }},
      {"move and swap",
       [](Tensor y, const Tensor&) {
         Tensor z = std::move(y);
         return z.mul(3);
       }},
  };
}

}  // namespace

TEST_CASE("1-D, 3-D and 4-D inputs give the bits of a 2-D input", "[guard][bias]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kHalf, at::kDouble);
  const auto context = GENERATE(as<std::string>(), "grad", "no grad", "inference", "autocast");
  CAPTURE(dtype, context);
  OneLayer model(32, 24);
  model->to(dtype);
  const auto x = torch::randn({6, 32}).to(dtype);
  const auto out_dtype = context == "autocast" && dtype != at::kDouble ? at::kBFloat16 : dtype;
  const auto expected = int8_result(x, model->fc->weight, model->fc->bias, out_dtype);
  const AutocastGuard guard(model, Mode::QAT);
  in_context(context, [&] {
    CHECK(same(model(x).detach(), expected));
    CHECK(same(model(x.view({2, 3, 32})).detach(), expected.view({2, 3, 24})));
    CHECK(same(model(x.view({1, 3, 2, 32})).detach(), expected.view({1, 3, 2, 24})));
    CHECK(same(model(x[4]).detach(), expected[4]));
    const auto y = model(x.view({2, 3, 32}));
    CHECK(y.requires_grad() == (context == "grad" || context == "autocast"));
    CHECK(y.is_inference() == (context == "inference"));
  });
  CHECK(line_of(guard.report(), "fc").bias_fused);
}

TEST_CASE("a product without its bias has the values of a product, whoever looks first", "[guard][bias]") {
  const auto shape = GENERATE(std::vector<int64_t>{2, 3, 8}, std::vector<int64_t>{2, 1, 3, 8});
  for (const auto& use : uses()) {
    DYNAMIC_SECTION(use.how) {
      OneLayer model;
      model->to(torch::kBFloat16);
      const auto x = torch::randn(shape).to(torch::kBFloat16);
      const auto bias = model->fc->bias;
      const auto plain = int8_result(x, model->fc->weight, {}, at::kBFloat16).clone();
      const auto expected = use.apply(plain, bias);
      const AutocastGuard guard(model, Mode::QAT);
      CHECK(same(use.apply(product(model, x), bias).detach(), expected.detach()));
      const torch::NoGradGuard no_grad;
      CHECK(same(use.apply(product(model, x), bias), expected.detach()));
      CHECK_FALSE(line_of(guard.report(), "fc").bias_fused);
    }
  }
}

TEST_CASE("a product shows its metadata before anybody has used it", "[guard][bias]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  const auto y = product(model, torch::randn({2, 3, 8}));
  CHECK(y.sizes() == at::IntArrayRef({2, 3, 4}));
  CHECK(y.strides() == at::IntArrayRef({12, 4, 1}));
  CHECK(y.scalar_type() == at::kFloat);
  CHECK(y.device() == test_device());
  CHECK(y.numel() == 24);
  CHECK(y.is_contiguous());
  CHECK(y.requires_grad());
  CHECK(y.grad_fn() != nullptr);
  CHECK_FALSE(y.is_leaf());
  CHECK(y.has_storage());
  if (y.is_cpu()) CHECK(y.accessor<float, 3>()[1][2][3] == y[1][2][3].item<float>());
}

TEST_CASE("the bias gets a gradient exactly when it was added", "[guard][bias]") {
  const bool weight_trains = GENERATE(true, false), bias_trains = GENERATE(true, false);
  const bool x_trains = GENERATE(true, false), adds = GENERATE(true, false);
  CAPTURE(weight_trains, bias_trains, x_trains, adds);
  const auto run = [&](OneLayer& model, Tensor& x) {
    auto y = product(model, x);
    if (adds) {
      y.add_(model->fc->bias);
    } else {
      y.relu_();
    }
    return y;
  };
  OneLayer model;
  model->fc->weight.set_requires_grad(weight_trains);
  model->fc->bias.set_requires_grad(bias_trains);
  auto x = torch::randn({2, 3, 8}).set_requires_grad(x_trains);
  const bool plain_requires_grad = run(model, x).requires_grad();

  const AutocastGuard guard(model, Mode::QAT);
  const auto y = run(model, x);
  CHECK(y.requires_grad() == plain_requires_grad);
  if (!y.requires_grad()) return;
  y.sum().backward();
  CHECK(model->fc->weight.grad().defined() == weight_trains);
  CHECK(x.grad().defined() == x_trains);
  REQUIRE(model->fc->bias.grad().defined() == (bias_trains && adds));
  if (bias_trains && adds) CHECK(same(model->fc->bias.grad(), torch::full({4}, 6.0F)));
}

TEST_CASE("the graph of a 3-D input is the one of a 2-D input", "[guard][bias]") {
  const auto recipe = GENERATE(Recipe::qat(), Recipe::switchback(), Recipe::int8_training());
  const bool x_trains = GENERATE(true, false), weight_trains = GENERATE(true, false);
  CAPTURE(x_trains, weight_trains);
  OneLayer model(32, 24);
  model->fc->weight.set_requires_grad(weight_trains);
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto gradients = [&](at::IntArrayRef shape) {
    torch::manual_seed(3);
    const auto x = torch::randn({6, 32}).view(shape).set_requires_grad(x_trains);
    const auto y = model(x);
    if (x_trains || weight_trains) {
      CHECK(y.grad_fn()->name().find("LinearFunction") != std::string::npos);
      CHECK(y.grad_fn()->num_outputs() == 3);
    }
    y.backward(torch::randn({6, 24}).view(y.sizes()));
    std::vector<Tensor> result{model->fc->bias.grad()};
    if (weight_trains) result.push_back(model->fc->weight.grad());
    if (x_trains) result.push_back(x.grad().view({6, 32}));
    for (auto& parameter : model->parameters()) parameter.mutable_grad().reset();
    return result;
  };
  const auto expected = gradients({6, 32}), got = gradients({2, 3, 32});
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(same(got[i], expected[i]));
}

TEST_CASE("grad mode counts when the bias is added, not when the product is made", "[guard][bias]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  const auto x = torch::randn({2, 3, 8});
  SECTION("the product without, the bias with") {
    Tensor y;
    {
      const torch::NoGradGuard no_grad;
      y = product(model, x);
    }
    y.add_(model->fc->bias);
    REQUIRE(y.requires_grad());
    y.sum().backward();
    CHECK(model->fc->bias.grad().defined());
    CHECK_FALSE(model->fc->weight.grad().defined());
  }
  SECTION("the product with, the bias without") {
    auto y = product(model, x);
    {
      const torch::NoGradGuard no_grad;
      y.add_(model->fc->bias);
    }
    y.sum().backward();
    CHECK_FALSE(model->fc->bias.grad().defined());
    CHECK(model->fc->weight.grad().defined());
  }
}

TEST_CASE("hooks and retained gradients on a product see what its users send", "[guard][bias]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  auto y = product(model, torch::randn({2, 3, 8}));
  int hooks = 0;
  y.register_hook([&](const Tensor& gradient) {
    ++hooks;
    return gradient * 2;
  });
  y.retain_grad();
  y.sum().backward();
  CHECK(hooks == 1);
  CHECK(same(y.grad(), torch::full({2, 3, 4}, 2.0F)));
}

TEST_CASE("a history that somebody has hold of is left as it is when the bias is added", "[guard][bias]") {
  OneLayer model;
  const auto x = torch::randn({2, 3, 8}).requires_grad_();
  const auto ones = torch::ones({2, 3, 4});
  // db is what comes after the addition, dW what comes before it too.
  const auto run = [&](const std::string& how) {
    auto y = product(model, x);
    Tensor early = torch::zeros({});
    if (how == "hook") y.register_hook([](const Tensor& gradient) { return gradient * 2; });
    if (how == "backward") y.backward(ones, /*retain_graph=*/true);
    struct Twice : torch::autograd::Function<Twice> {  // without a look at the values
      static Tensor forward(torch::autograd::AutogradContext*, const Tensor& t) { return torch::full({2, 3, 4}, 7.0F, t.options()); }
      static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list g) {
        return {g[0] * 2};
      }
    };
    if (how == "edge") early = Twice::apply(y);
    y.add_(model->fc->bias);
    (y.sum() + early.sum()).backward();
    std::vector<Tensor> result{model->fc->bias.grad(), model->fc->weight.grad(), x.grad()};
    for (auto& parameter : model->parameters()) parameter.mutable_grad() = Tensor();
    x.mutable_grad() = Tensor();
    return result;
  };
  for (const std::string how : {"nothing", "hook", "backward", "edge"}) {
    CAPTURE(how);
    const auto plain = run(how);
    const AutocastGuard guard(model, Mode::QAT);
    const auto got = run(how);
    CHECK(same(got[0], plain[0]));
    for (std::size_t i = 1; i < got.size(); ++i) CHECK(relative_error(got[i], plain[i]) < 0.02);
  }
}

TEST_CASE("a product keeps its values when weight, bias and input change before anybody looks", "[guard][bias]") {
  OneLayer model;
  auto x = torch::randn({2, 3, 8});
  const auto expected = int8_result(x, model->fc->weight, {}, at::kFloat);
  Tensor y;
  {
    const AutocastGuard guard(model, Mode::QAT);
    const torch::NoGradGuard no_grad;
    y = product(model, x);
    model->fc->weight.zero_();
    model->fc->bias.fill_(5);
    x.zero_();
  }
  CHECK(same(y, expected));
}

TEST_CASE("many threads may be the first to look at one product", "[guard][bias]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  const torch::NoGradGuard no_grad;
  for (int round = 0; round < 20; ++round) {
    const auto x = torch::randn({2, 3, 8});
    const auto y = product(model, x);
    std::vector<Tensor> seen(4);
    std::vector<std::thread> threads;
    for (auto& slot : seen) threads.emplace_back([&slot, y] { slot = y.clone(); });
    for (auto& thread : threads) thread.join();
    const auto expected = int8_result(x, model->fc->weight, {}, at::kFloat);
    for (const auto& slot : seen) REQUIRE(same(slot, expected));
  }
}

TEST_CASE("the report tells a fused bias from a separate one", "[guard][bias]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  CHECK_FALSE(line_of(guard.report(), "fc").bias_fused);
  model(torch::randn({2, 3, 8}));
  CHECK(line_of(guard.report(), "fc").bias_fused);
  model(torch::randn({3, 8}));
  CHECK(line_of(guard.report(), "fc").bias_fused);
  product(model, torch::randn({2, 3, 8})).add_(1);
  CHECK_FALSE(line_of(guard.report(), "fc").bias_fused);
  CHECK(calls_of(guard, "fc") == 3);
}

TEST_CASE("a leaf that requires a gradient is not written in place, as without a scope", "[guard][bias]") {
  OneLayer model;
  model->fc->weight.set_requires_grad(false);
  const auto x = torch::randn({2, 3, 8});
  const auto add = [&](const Tensor& added) {
    auto y = product(model, x).requires_grad_();
    return error_of([&] { y.add_(added); });
  };
  const auto other = torch::randn({4});
  const auto plain = add(model->fc->bias), plain_other = add(other);
  CHECK(plain != "");
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(add(model->fc->bias) == plain);
  CHECK(add(other) == plain_other);
}

TEST_CASE("a second derivative raises for the bias of 2-D and 3-D inputs", "[guard][bias]") {
  OneLayer model;
  const auto x = GENERATE(torch::randn({3, 8}), torch::randn({2, 3, 8})).set_requires_grad(true);
  const AutocastGuard guard(model, Mode::QAT);
  const auto gradients =
      torch::autograd::grad({model(x).pow(2).sum()}, {model->fc->bias}, {}, true, /*create_graph=*/true);
  const auto message = error_of([&] { gradients[0].pow(2).sum().backward(); });
  CHECK(message.find("expected a first-order backward") != std::string::npos);
}

TEST_CASE("a bias that does not fit is refused, however few rows there are", "[guard][bias]") {
  const int64_t rows = GENERATE(1, 4, 40);
  const auto wrong = GENERATE(torch::zeros({1}), torch::zeros({64}), torch::zeros({32}, at::kInt), torch::zeros({2, 16}));
  CAPTURE(rows, wrong.sizes(), wrong.scalar_type());
  const torch::NoGradGuard no_grad;
  nn::Linear layer(64, 32);
  te_int8::QuantizedLinear quantized(layer.ptr(), Mode::Inference);
  quantized->bias = wrong;
  const auto x = torch::randn({rows, 64});
  CHECK(error_of([&] { quantized->forward(x); }).find("expected bias") != std::string::npos);
}

TEST_CASE("operands with a negative bit count as what they stand for, however few rows there are", "[guard][bias]") {
  const int64_t rows = GENERATE(1, 4, 40);
  const auto x = torch::randn({rows, 64}), weight = torch::randn({32, 64}), bias = torch::randn({32});
  const auto expected = te_int8::ops::linear(x, weight, bias);
  CHECK(same(te_int8::ops::linear(x, weight, bias.neg()._neg_view()), expected));
  CHECK(same(te_int8::ops::linear(x.neg()._neg_view(), weight, bias), expected));
  const torch::NoGradGuard no_grad;
  nn::Linear layer(64, 32);
  te_int8::QuantizedLinear quantized(layer.ptr(), Mode::Inference);
  quantized->weight = weight;
  quantized->bias = bias.neg()._neg_view();
  CHECK(same(quantized->forward(x), expected));
  CHECK(same(quantized->forward(x.neg()._neg_view()), expected));
}
