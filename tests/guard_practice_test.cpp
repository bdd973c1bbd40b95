// What training programs do around a step: loss scaling, clipping, recomputing activations, keeping the graph, several
// recipes in one model.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

const auto& recipes() {
  static const std::vector<std::pair<std::string, Recipe>> all = {
      {"qat", Recipe::qat()}, {"switchback", Recipe::switchback()}, {"int8_training", Recipe::int8_training()}};
  return all;
}

/// A block as transformers have it.
struct ResidualImpl : nn::Module {
  explicit ResidualImpl(int64_t width)
      : norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({width})))),
        fc1(register_module("fc1", nn::Linear(width, 2 * width))),
        fc2(register_module("fc2", nn::Linear(2 * width, width))) {}
  Tensor forward(const Tensor& x) { return x + fc2(torch::gelu(fc1(norm(x)))); }
  nn::LayerNorm norm;
  nn::Linear fc1, fc2;
};
TORCH_MODULE(Residual);

/// Holds its input only and computes the block again in the backward.
class Recomputed : public torch::autograd::Function<Recomputed> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, Residual* block) {
    ctx->save_for_backward({x});
    ctx->saved_data["block"] = reinterpret_cast<int64_t>(block);
    return (*block)(x);
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx, torch::autograd::variable_list gradients) {
    const auto x = ctx->get_saved_variables()[0].detach().requires_grad_();
    const at::AutoGradMode grad_mode(true);
    (*reinterpret_cast<Residual*>(ctx->saved_data["block"].toInt()))(x).backward(gradients[0]);
    return {x.grad(), {}};
  }
};

std::vector<Tensor> take_gradients(nn::Module& model) {
  std::vector<Tensor> result;
  for (auto& parameter : model.parameters()) {
    result.push_back(parameter.grad());
    parameter.mutable_grad() = Tensor();
  }
  return result;
}

bool gradients_are_finite(const nn::Module& model) {
  for (const auto& parameter : model.parameters()) {
    if (!parameter.grad().isfinite().all().item<bool>()) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("a loss scaler in fp16 sees every overflow, skips the step, and training goes on", "[guard][training]") {
  for (const auto& [name, recipe] : recipes()) {
    CAPTURE(name);
    torch::manual_seed(401);
    Residual model(32);
    model->to(at::kHalf);
    const auto x = torch::randn({64, 32}).to(at::kHalf), target = x.sin();
    const AutocastGuard guard(model, Mode::QAT, recipe);
    float scale = 0x1p24F;
    int skipped = 0;
    std::vector<float> losses;
    while (losses.size() < 40) {
      model->zero_grad();
      const auto loss = (model(x) - target).to(at::kFloat).pow(2).mean();
      (loss * scale).backward();
      if (!gradients_are_finite(*model)) {  // no code may hide an infinity
        scale /= 2;
        REQUIRE(++skipped < 25);
        continue;
      }
      losses.push_back(loss.item<float>());
      const torch::NoGradGuard no_grad;
      for (auto& parameter : model->parameters()) parameter.sub_((parameter.grad().to(at::kFloat) / scale).to(at::kHalf), 0.5);
    }
    CHECK(skipped > 0);
    CHECK(losses.back() < 0.7F * losses.front());
  }
}

TEST_CASE("clipped gradients are the gradients, shorter", "[guard][training]") {
  for (const auto& [name, recipe] : recipes()) {
    CAPTURE(name);
    torch::manual_seed(402);
    Residual model(32);
    const auto x = torch::randn({16, 32});
    const AutocastGuard guard(model, Mode::QAT, recipe);
    const auto gradients = [&] {
      model(x).pow(2).sum().backward();
    };
    gradients();
    const auto whole = take_gradients(*model);
    gradients();
    const auto norm = nn::utils::clip_grad_norm_(model->parameters(), 0.5);
    const auto clipped = take_gradients(*model);
    double squares = 0;
    for (std::size_t i = 0; i < whole.size(); ++i) {
      squares += clipped[i].pow(2).sum().item<double>();
      CHECK(relative_error(clipped[i], whole[i] * (0.5 / norm)) < 1e-5);
    }
    CHECK(std::abs(std::sqrt(squares) - 0.5) < 1e-4);
  }
}

TEST_CASE("a block that is computed again in the backward gives the gradients of one that is not", "[guard][training]") {
  for (const auto& [name, recipe] : recipes()) {
    CAPTURE(name);
    torch::manual_seed(403);
    Residual model(32);
    const auto x = torch::randn({16, 32}).requires_grad_();
    const auto run = [&](bool recomputes) {
      const auto h = x * 2;
      const auto y = recomputes ? Recomputed::apply(h, &model) : model(h);
      y.pow(2).sum().backward();
      auto result = take_gradients(*model);
      result.push_back(x.grad());
      x.mutable_grad() = Tensor();
      return result;
    };
    const AutocastGuard guard(model, Mode::QAT, recipe);
    for (int i = 0; i < 3; ++i) {  // places of activations are known from the second on
      const auto expected = run(false), got = run(true);
      for (std::size_t p = 0; p < expected.size(); ++p) CHECK(same(got[p], expected[p]));
    }
    CHECK(calls_of(guard, "fc1") == 9);
  }
}

TEST_CASE("a graph that is kept gives its gradients again", "[guard][training]") {
  for (const auto& [name, recipe] : recipes()) {
    CAPTURE(name);
    torch::manual_seed(404);
    Residual model(32);
    const auto x = torch::randn({16, 32});
    const AutocastGuard guard(model, Mode::QAT, recipe);
    for (int i = 0; i < 2; ++i) {
      const auto loss = model(x).pow(2).sum();
      loss.backward({}, /*retain_graph=*/true);
      const auto first = take_gradients(*model);
      loss.backward({}, /*retain_graph=*/true);
      const auto again = take_gradients(*model);
      for (std::size_t p = 0; p < first.size(); ++p) CHECK(same(again[p], first[p]));
      loss.backward({}, /*retain_graph=*/true);
      loss.backward();
      const auto both = take_gradients(*model);
      for (std::size_t p = 0; p < first.size(); ++p) CHECK(relative_error(both[p], 2 * first[p]) < 1e-6);
    }
  }
}

TEST_CASE("each layer of a model trains by its own recipe", "[guard][training]") {
  torch::manual_seed(405);
  Residual model(32);
  const auto x = torch::randn({16, 32}).requires_grad_();
  const auto gradients = [&](const Recipe& recipe) {
    const AutocastGuard guard(model, Mode::QAT, recipe);
    return torch::autograd::grad({model(x).pow(2).sum()}, {model->fc1->weight, model->fc2->weight});
  };
  const auto qat = gradients(Recipe::qat()), int8 = gradients(Recipe::int8_training());
  const auto mixed = gradients(Recipe::int8_training().rule("fc1", Recipe::qat()));
  CHECK_FALSE(same(qat[1], int8[1]));
  CHECK(same(mixed[1], int8[1]));
  CHECK_FALSE(same(mixed[0], int8[0]));  // its dy has passed fc2 in INT8
  const auto other = gradients(Recipe::qat().rule("fc1", Recipe::int8_training()));
  CHECK(same(other[1], qat[1]));
  CHECK_FALSE(same(other[0], qat[0]));
}
