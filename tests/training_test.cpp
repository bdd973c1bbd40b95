// Whole training runs: with each optimizer QAT learns, and where the scope begins and ends does not
// change a bit of it.
#include <functional>
#include <optional>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

using MakeOptimizer =
    std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<Tensor> parameters)>;

struct NamedOptimizer {
  const char* name;
  MakeOptimizer make;
};

std::vector<NamedOptimizer> optimizers() {
  namespace optim = torch::optim;
  return {
      {"SGD",
       [](auto p) { return std::make_unique<optim::SGD>(std::move(p), optim::SGDOptions(0.5)); }},
      {"SGD with momentum",
       [](auto p) {
         return std::make_unique<optim::SGD>(
             std::move(p), optim::SGDOptions(0.1).momentum(0.9).weight_decay(1e-4));
       }},
      {"AdamW",
       [](auto p) { return std::make_unique<optim::AdamW>(std::move(p), optim::AdamWOptions(1e-2)); }},
  };
}

enum class Scopes { OneAroundAll, OnePerStep, OnePerForward };

/// The loss of each step of a regression run that starts from the same weights every time. A step
/// accumulates the gradients of `micro_batches` forwards.
std::vector<double> losses_of_run(
    const MakeOptimizer& make, Scopes scopes, const Recipe& recipe, int micro_batches) {
  torch::manual_seed(7);
  Mlp model(16);
  const auto x = torch::randn({64, 16});
  const auto target = torch::sin(x.narrow(1, 0, 4) * 2);
  const auto optimizer = make(model->parameters());
  std::vector<double> losses;

  std::optional<AutocastGuard> whole;
  if (scopes == Scopes::OneAroundAll) whole.emplace(model, Mode::QAT, recipe);
  for (int step = 0; step < 60; ++step) {
    std::optional<AutocastGuard> of_step;
    if (scopes == Scopes::OnePerStep) of_step.emplace(model, Mode::QAT, recipe);
    optimizer->zero_grad();
    losses.push_back(0);
    for (int micro = 0; micro < micro_batches; ++micro) {
      const auto rows = 64 / micro_batches;
      Tensor loss;
      {
        std::optional<AutocastGuard> of_forward;
        if (scopes == Scopes::OnePerForward) of_forward.emplace(model, Mode::QAT, recipe);
        const auto y = model->forward(x.narrow(0, micro * rows, rows));
        loss = torch::mse_loss(y, target.narrow(0, micro * rows, rows)) / micro_batches;
      }
      loss.backward();
      losses.back() += loss.item<double>();
    }
    optimizer->step();
  }
  return losses;
}

}  // namespace

TEST_CASE("one scope around a run, one per step and one per forward give the same losses", "[guard][training]") {
  const auto micro_batches = GENERATE(1, 2);
  const auto recipe = GENERATE(as<Recipe>(), Recipe::qat(), Recipe::int8_training());
  for (const auto& [name, make] : optimizers()) {
    INFO(name << ", " << micro_batches << " micro-batches");
    const auto one = losses_of_run(make, Scopes::OneAroundAll, recipe, micro_batches);
    CHECK(one == losses_of_run(make, Scopes::OnePerStep, recipe, micro_batches));
    CHECK(one == losses_of_run(make, Scopes::OnePerForward, recipe, micro_batches));
    CHECK(one.back() < 0.6 * one.front());
  }
}

TEST_CASE("a scope around a run trains as well as full precision", "[guard][training]") {
  for (const auto& [name, make] : optimizers()) {
    INFO(name);
    const auto full =
        losses_of_run(make, Scopes::OneAroundAll, Recipe().output(Precision::Full), 1);
    const auto qat = losses_of_run(make, Scopes::OneAroundAll, Recipe::qat(), 1);
    CHECK(std::abs(qat.back() - full.back()) < 0.05 * full.front());
  }
}
