// Gradients whose codes come with them: nobody can tell by the numbers, nor loses a gradient that is also somebody else's.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

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

/// What lies between the first layer and the function. Behind a view no layer is found, and none gets codes.
using Between = std::function<Tensor(const Tensor&)>;
const Between kNothing = [](const Tensor& h) { return h; };
const Between kView = [](const Tensor& h) { return h.view_as(h); };

using Loss = std::function<Tensor(Wide&, const Tensor& x, const Between&)>;

Loss loss_by(const Function& f) {
  return [f](Wide& model, const Tensor& x, const Between& between) {
    return model->out->forward(f(between(model->in->forward(x)))).square().sum();
  };
}
const Loss kGeluLoss = loss_by(functions()[0].second);

/// The gradients of x and of all parameters.
std::vector<Tensor> gradients_of(Wide& model, const Tensor& x, const Loss& loss, const Between& between) {
  model->zero_grad();
  const auto leaf = x.detach().clone().requires_grad_();
  loss(model, leaf, between).backward();
  std::vector<Tensor> results{leaf.grad()};
  for (const auto& parameter : model->parameters()) results.push_back(parameter.grad().clone());
  return results;
}

/// Keeps the first gradient that a node gives.
struct Keeper : torch::autograd::FunctionPostHook {
  explicit Keeper(Tensor& place) : kept(place) {}
  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs, const torch::autograd::variable_list& /*inputs*/) override {
    kept = outputs[0];
    return outputs;
  }
  Tensor& kept;
};

/// How often a backward makes codes of a gradient in a pass of their own.
int passes_over_gradients(const Tensor& loss) {
  int by_row = 0;
  const int by_both = OperationCounter::calls("quantize_rows_and_columns", [&] {
    by_row = OperationCounter::calls("quantize_rows", [&] { loss.backward(); });
  });
  return by_row + by_both;
}

/// Whatever the loss, it has the same gradients as where no codes come with one. `come`: whether some do.
void require_same_gradients(const Recipe& recipe, const Loss& loss, bool come) {
  Wide model;
  const auto x = wide_input();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto leaf = x.clone().requires_grad_();
  for (int again = 0; again < 3; ++again) {
    CAPTURE(again);
    const auto expected = gradients_of(model, x, loss, kView), got = gradients_of(model, x, loss, kNothing);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      REQUIRE(same(got[i], expected[i]));
    }
    REQUIRE(passes_over_gradients(loss(model, leaf, kView)) == 2);  // of each layer's
    const int passes = passes_over_gradients(loss(model, leaf, kNothing));
    if (again > 0) REQUIRE(passes == (come ? 1 : 2));  // once it is known who reads what the function makes
  }
}

}  // namespace

TEST_CASE("codes that come with a gradient change no bit of a step", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto preactivations = GENERATE(Precision::Full, Precision::Int8);
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  for (const auto& [name, f] : functions()) {
    CAPTURE(name);
    require_same_gradients(Recipe(recipe).preactivations(preactivations), loss_by(f), /*come=*/true);
  }
}

TEST_CASE("codes that come with a gradient take no more memory than those that a layer makes", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  Wide model;
  const auto x = wide_input();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto peak = [&](const Between& between) {
    gradients_of(model, x, kGeluLoss, between);
    return peak_of([&] { gradients_of(model, x, kGeluLoss, between); });
  };
  peak(kView);
  const auto before = bytes_in_use();
  const auto of_layers = peak(kView);
  CHECK(peak(kNothing) <= of_layers);
  CHECK(bytes_in_use() == before);
}

TEST_CASE("gradients that leave codes are LibTorch's, bit for bit, for every value of 16 bits", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto bits = torch::arange(-32768, 32768, at::kInt).to(at::kShort);
  const auto rows = bits.view(at::kBFloat16).view({4, WideImpl::kWidth});
  const auto all = at::cat(std::vector<Tensor>(WideImpl::kRows / 4, rows));
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  for (const auto& [name, f] : functions()) {
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
  SECTION("another reader of the function's input, before it or after it") {
    const bool before = GENERATE(true, false);
    const auto loss = [=](Wide& model, const Tensor& x, const Between& between) {
      const auto h = between(model->in->forward(x));
      const auto first = before ? (h * 0.25).sum() : Tensor();
      const auto z = model->out->forward(at::gelu(h)).square().sum();
      return z + (before ? first : (h * 0.25).sum());
    };
    require_same_gradients(recipe, loss, /*come=*/false);
  }
  SECTION("another reader of its result, before or after the layer") {
    const bool before = GENERATE(true, false);
    const auto loss = [=](Wide& model, const Tensor& x, const Between& between) {
      const auto y = at::gelu(between(model->in->forward(x)));
      const auto first = before ? (y * 0.25).sum() : Tensor();
      const auto z = model->out->forward(y).square().sum();
      return z + (before ? first : (y * 0.25).sum());
    };
    require_same_gradients(recipe, loss, /*come=*/false);
  }
  SECTION("a hook that changes the gradient of the function's input") {
    const bool unseen = GENERATE(false, true);
    const auto loss = [=](Wide& model, const Tensor& x, const Between& between) {
      const auto h = model->in->forward(x);
      if (unseen) h.register_hook([](Tensor dh) { dh.data().mul_(2); });
      if (!unseen) h.register_hook([](const Tensor& dh) { return dh * 2; });
      return model->out->forward(at::gelu(between(h))).square().sum();
    };
    require_same_gradients(recipe, loss, /*come=*/false);
  }
  SECTION("who keeps what the function is given") {
    const int way = GENERATE(0, 1, 2, 3);
    Wide model;
    const auto x = wide_input().requires_grad_();
    const AutocastGuard guard(model, Mode::QAT, recipe);
    for (int again = 0; again < 3; ++again) {
      CAPTURE(way, again);
      Tensor kept;
      const auto y = at::gelu(model->in->forward(x)), z = model->out->forward(y), loss = z.square().sum();
      const auto expected = torch::autograd::grad({loss}, {y}, {}, /*retain_graph=*/true)[0].clone();
      if (way == 0) y.register_hook([&](const Tensor& dy) { kept = dy; });
      if (way == 1) y.retain_grad();
      if (way == 2) z.grad_fn()->add_post_hook(std::make_unique<Keeper>(kept));
      if (way == 3) {
        kept = torch::autograd::grad({loss}, {y, x})[0];
      } else {
        loss.backward();
      }
      if (way == 1) kept = y.grad();
      CHECK(same(kept, expected));
    }
  }
  SECTION("a tensor that retains the gradient that comes with codes") {
    Wide model;
    const auto x = wide_input();
    const AutocastGuard guard(model, Mode::QAT, recipe);
    const auto gradient = [&](const Between& between) {
      const auto h = model->in->forward(x);
      h.retain_grad();
      model->out->forward(at::gelu(between(h))).square().sum().backward();
      return h.grad();
    };
    for (int again = 0; again < 3; ++again) CHECK(same(gradient(kNothing), gradient(kView)));
  }
}

TEST_CASE("a graph that leaves codes may be walked again, in part, and to the second order", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  Wide model;
  const auto x = wide_input();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto expected = gradients_of(model, x, kGeluLoss, kView);
  for (int again = 0; again < 2; ++again) gradients_of(model, x, kGeluLoss, kNothing);
  const auto leaf = x.clone().requires_grad_(), h = model->in->forward(leaf);
  const auto loss = model->out->forward(at::gelu(h)).square().sum();
  const auto gradient_of = [&](const Tensor& input, bool create_graph = false) {
    return torch::autograd::grad({loss}, {input}, {}, /*retain_graph=*/true, create_graph)[0];
  };
  for (int again = 0; again < 2; ++again) CHECK(same(gradient_of(leaf), expected[0]));
  const auto before = bytes_in_use();
  gradient_of(h);
  CHECK(bytes_in_use() == before);  // no codes for a layer that is not come to
  CHECK(same(gradient_of(model->in->weight), expected[1]));
  CHECK(same(gradient_of(model->in->bias), expected[2]));
  CHECK(same(gradient_of(leaf, /*create_graph=*/true).detach(), expected[0]));
  CHECK(same(gradient_of(leaf), expected[0]));
}

TEST_CASE("codes are not left where versions do not count what is added", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  Wide model;
  const auto x = wide_input().requires_grad_();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const auto loss = [&](const Between& between) {
    const auto h = between(model->in->forward(x)), other = (h * 0.25).sum();
    return model->out->forward(at::gelu(h)).square().sum() + other;
  };
  for (int again = 0; again < 2; ++again) loss(kNothing);
  const auto plain = loss(kView), got = loss(kNothing);
  const auto gradient = [&](const Tensor& of) { return torch::autograd::grad({of}, {x})[0]; };
  const at::AutoDispatchBelowADInplaceOrView as_in_a_kernel;
  CHECK(same(gradient(got), gradient(plain)));
}

TEST_CASE("layers on other streams make the codes of their gradients themselves", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto recipe = GENERATE(Recipe::switchback(), Recipe::int8_training());
  Wide model;
  const auto x = wide_input();
  const AutocastGuard guard(model, Mode::QAT, recipe);
  const c10::impl::VirtualGuardImpl device(test_device().type());
  const auto other = device.getStreamFromGlobalPool(x.device()), usual = device.getStream(x.device());
  const auto wait = [&](const c10::Stream& waiting, const c10::Stream& awaited) {
    c10::Event reached(test_device().type());
    reached.record(awaited);
    reached.block(waiting);
  };
  const Loss loss = [&](Wide& m, const Tensor& leaf, const Between& between) {
    wait(other, usual);
    Tensor h;
    {
      const c10::StreamGuard on(other);
      h = m->in->forward(leaf);
    }
    wait(usual, other);
    h.record_stream(usual);
    return m->out->forward(at::gelu(between(h))).square().sum();
  };
  for (int again = 0; again < 3; ++again) {
    const auto expected = gradients_of(model, x, loss, kView), got = gradients_of(model, x, loss, kNothing);
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK(same(got[i], expected[i]));
  }
}
