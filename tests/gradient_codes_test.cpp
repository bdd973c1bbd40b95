// Gradients whose codes come with them: nobody can tell by the numbers, nor loses a gradient that is also somebody else's.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

struct GradientCase {
  std::string name;
  Tensor (*f)(const Tensor&);
};

const std::vector<GradientCase>& gradient_cases() {
  static const std::vector<GradientCase> all = {
      {"gelu", [](const Tensor& x) { return at::gelu(x); }},
      {"gelu tanh", [](const Tensor& x) { return at::gelu(x, "tanh"); }},
      {"relu", [](const Tensor& x) { return at::relu(x); }},
      {"silu", [](const Tensor& x) { return at::silu(x); }},
  };
  return all;
}

/// in -> a function -> out, so large that a kernel of its own makes the function's gradient.
struct WideImpl : nn::Module {
  WideImpl() {
    torch::manual_seed(210);
    in = register_module("in", nn::Linear(64, kWidth));
    out = register_module("out", nn::Linear(kWidth, 64));
    to(at::kBFloat16);
  }
  static constexpr int64_t kRows = 1184, kWidth = 16384;
  nn::Linear in = nullptr, out = nullptr;
};
TORCH_MODULE(Wide);

Tensor wide_input() { return torch::randn({2, WideImpl::kRows / 2, 64}).to(at::kBFloat16) * 3; }

using Loss = std::function<Tensor(Wide&, const Tensor&)>;

/// The gradients of x and of all parameters.
std::vector<Tensor> gradients_of(Wide& model, const Loss& loss, const Tensor& x) {
  model->zero_grad();
  const auto leaf = x.detach().clone().requires_grad_();
  loss(model, leaf).backward();
  std::vector<Tensor> results{leaf.grad()};
  for (const auto& parameter : model->parameters()) results.push_back(parameter.grad().clone());
  return results;
}

/// How often a backward makes codes of a gradient in a pass of their own.
int passes_over_gradients(const Tensor& loss) {
  int by_row = 0;
  const int by_both = OperationCounter::calls("quantize_rows_and_columns", [&] {
    by_row = OperationCounter::calls("quantize_rows", [&] { loss.backward(); });
  });
  return by_row + by_both;
}

/// Whatever the loss, it is the same with codes that come with gradients as with those that the layer makes.
void require_same_gradients(const Recipe& recipe, const Loss& loss) {
  Wide model;
  const auto x = wide_input();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto first = gradients_of(model, loss, x);  // nobody knows yet who reads what the function makes
  for (int again = 0; again < 3; ++again) {
    const auto later = gradients_of(model, loss, x);
    for (std::size_t i = 0; i < first.size(); ++i) {
      CAPTURE(again, i);
      REQUIRE(same(later[i], first[i]));
    }
  }
}

Tensor gelu_loss(Wide& model, const Tensor& x) { return model->out->forward(at::gelu(model->in->forward(x))).square().sum(); }

}  // namespace

TEST_CASE("codes that come with a gradient change no bit of a step", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto preactivations = GENERATE(Precision::Full, Precision::Int8);
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  for (const auto& [name, f] : gradient_cases()) {
    CAPTURE(name);
    const auto loss = [&, g = f](Wide& model, const Tensor& x) {
      return model->out->forward(g(model->in->forward(x))).square().sum();
    };
    require_same_gradients(Recipe(recipe).preactivations(preactivations), loss);
  }
}

TEST_CASE("codes come with a function's gradient", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  Wide model;
  const auto x = wide_input();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto leaf = x.clone().requires_grad_();
  const auto behind_view = [](Wide& m, const Tensor& input) {
    return m->out->forward(at::gelu(m->in->forward(input).flatten(0, 1))).square().sum();
  };
  for (int again = 0; again < 3; ++again) {
    const int of_each = passes_over_gradients(behind_view(model, leaf)), of_one = passes_over_gradients(gelu_loss(model, leaf));
    CHECK(of_each == 2);
    if (again > 0) CHECK(of_one == 1);  // once it is known who reads what the function makes
  }
  const auto before = bytes_in_use();
  gelu_loss(model, leaf).backward();
  CHECK(bytes_in_use() == before);
}

TEST_CASE("gradients that leave codes are LibTorch's, bit for bit, for every value of 16 bits", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto bits = torch::arange(-32768, 32768, at::kInt).to(at::kShort);
  const auto rows = bits.view(at::kBFloat16).view({4, WideImpl::kWidth});
  const auto all = at::cat(std::vector<Tensor>(WideImpl::kRows / 4, rows));
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  for (const auto& [name, f] : gradient_cases()) {
    CAPTURE(name);
    Wide model;
    const auto x = wide_input().view({WideImpl::kRows, 64}).requires_grad_();
    const AutocastGuard guard(model, Mode::QAT, recipe);
    for (int again = 0; again < 2; ++again) model->out->forward(f(model->in->forward(x)));
    const auto h = model->in->forward(x);
    h.data().copy_(all);
    const auto y = f(h);
    const auto loss = model->out->forward(y).sum();
    const auto dy = torch::autograd::grad({loss}, {y}, {}, /*retain_graph=*/true)[0];
    const auto leaf = all.clone().requires_grad_();
    const auto expected = torch::autograd::grad({f(leaf)}, {leaf}, {dy})[0];
    Tensor dh;
    const int by_row = OperationCounter::calls("quantize_rows", [&] {
      const int by_both = OperationCounter::calls("quantize_rows_and_columns", [&] {
        dh = torch::autograd::grad({loss}, {h, x, model->in->bias, model->in->weight})[0];
      });
      CHECK(by_both <= 1);
    });
    CHECK(by_row <= 1);
    CHECK(same(dh, expected));
  }
}

TEST_CASE("a gradient that others add to, see or keep is as it was", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  const auto x = wide_input();
  SECTION("another reader of the function's input") {
    require_same_gradients(recipe, [](Wide& model, const Tensor& leaf) {
      const auto h = model->in->forward(leaf);
      return model->out->forward(at::gelu(h)).square().sum() + (h * 0.25).sum();
    });
  }
  SECTION("another reader of its result") {
    require_same_gradients(recipe, [](Wide& model, const Tensor& leaf) {
      const auto y = at::gelu(model->in->forward(leaf));
      return model->out->forward(y).square().sum() + (y * 0.25).sum();
    });
  }
  SECTION("a view between the layer and the function") {
    require_same_gradients(recipe, [](Wide& model, const Tensor& leaf) {
      return model->out->forward(at::gelu(model->in->forward(leaf).flatten(0, 1))).square().sum();
    });
  }
  SECTION("a hook that changes it") {
    require_same_gradients(recipe, [](Wide& model, const Tensor& leaf) {
      const auto h = model->in->forward(leaf);
      h.register_hook([](const Tensor& dh) { return dh * 2; });
      return model->out->forward(at::gelu(h)).square().sum();
    });
    require_same_gradients(recipe, [](Wide& model, const Tensor& leaf) {
      const auto h = model->in->forward(leaf);
      h.register_hook([](Tensor dh) { dh.data().mul_(2); });  // past LibTorch's knowledge
      return model->out->forward(at::gelu(h)).square().sum();
    });
  }
  SECTION("a hook that keeps what the function is given") {
    Wide model;
    const AutocastGuard guard(model, Mode::QAT, recipe);
    for (int again = 0; again < 3; ++again) {
      const auto y = at::gelu(model->in->forward(x));
      Tensor kept, copy;
      y.register_hook([&](const Tensor& dy) {
        kept = dy;
        copy = dy.clone();
      });
      model->out->forward(y).square().sum().backward();
      CHECK(same(kept, copy));
    }
  }
  SECTION("a tensor that retains its gradient") {
    Wide model;
    const AutocastGuard guard(model, Mode::QAT, recipe);
    std::vector<Tensor> first;
    for (int again = 0; again < 3; ++again) {
      const auto h = model->in->forward(x), y = at::gelu(h);
      h.retain_grad();
      y.retain_grad();
      model->out->forward(y).square().sum().backward();
      if (first.empty()) first = {h.grad(), y.grad()};
      CHECK(same(h.grad(), first[0]));
      CHECK(same(y.grad(), first[1]));
    }
  }
}

TEST_CASE("a graph that leaves codes may be walked again, in part, and to the second order", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  Wide model;
  const auto x = wide_input();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto first = gradients_of(model, gelu_loss, x);
  for (int again = 0; again < 2; ++again) gradients_of(model, gelu_loss, x);
  const auto leaf = x.clone().requires_grad_(), h = model->in->forward(leaf);
  const auto loss = model->out->forward(at::gelu(h)).square().sum();
  const auto dx = [&](bool create_graph) {
    return torch::autograd::grad({loss}, {leaf}, {}, /*retain_graph=*/true, create_graph)[0];
  };
  for (int again = 0; again < 2; ++again) CHECK(same(dx(false), first[0]));
  const auto before = bytes_in_use();
  torch::autograd::grad({loss}, {h}, {}, /*retain_graph=*/true);
  CHECK(bytes_in_use() == before);  // no codes for a layer that is not come to
  CHECK(same(dx(true).detach(), first[0]));
  CHECK(same(dx(false), first[0]));
}
