// The life of a scope: how it ends, how scopes nest, and what happens when they end in another order,
// in another thread or by an exception.
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <type_traits>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

bool quantizes(Mlp& model, nn::Linear& layer) {
  const auto x = torch::randn({3, layer->options.in_features()});
  const torch::NoGradGuard no_grad;
  const auto y = layer(x), plain = torch::linear(x.clone(), layer->weight.clone(), layer->bias);
  const bool shown = std::dynamic_pointer_cast<te_int8::QuantizedLinearImpl>(
                         model->named_modules()[&layer == &model->fc1 ? "fc1" : "fc2"]) != nullptr;
  CHECK(shown == !same(y, plain));
  return !same(y, plain);
}

/// Collects what LibTorch and te_int8 warn of.
/// A class whose constructor throws while it holds a guard.
struct ThrowsInConstructor {
  explicit ThrowsInConstructor(Mlp& model) : guard(model, Mode::QAT) {
    CHECK(quantizes(model, model->fc1));
    throw std::runtime_error("on purpose");
  }
  AutocastGuard guard;
};

}  // namespace

TEST_CASE("a guard is neither copied nor moved", "[guard][scopes]") {
  STATIC_CHECK_FALSE(std::is_copy_constructible_v<AutocastGuard>);
  STATIC_CHECK_FALSE(std::is_move_constructible_v<AutocastGuard>);
  STATIC_CHECK_FALSE(std::is_copy_assignable_v<AutocastGuard>);
  STATIC_CHECK_FALSE(std::is_move_assignable_v<AutocastGuard>);
}

TEST_CASE("the model is as before after a normal end and after an exception", "[guard][scopes]") {
  Mlp model;
  const Snapshot before(*model);
  const auto x = torch::randn({3, 16});
  const auto output = model(x);
  SECTION("a normal end") {
    const AutocastGuard guard(model, Mode::QAT);
    CHECK_FALSE(same(model(x), output));
  }
  SECTION("an exception of the user's") {
    CHECK_THROWS_AS(ThrowsInConstructor(model), std::runtime_error);
  }
  SECTION("an exception of LibTorch's") {
    CHECK_THROWS([&] {
      const AutocastGuard guard(model, Mode::QAT);
      model(torch::randn({3, 5}));
    }());
  }
  SECTION("an exception of the guard's constructor") {
    CHECK_THROWS(AutocastGuard(model, Mode::QAT, Recipe().include({"none"})));
    CHECK_THROWS(AutocastGuard(model, Mode::QAT, Recipe().backend("none")));
    CHECK_THROWS(AutocastGuard(std::shared_ptr<MlpImpl>(), Mode::QAT));
  }
  SECTION("an exception of the constructor inside a scope") {
    const AutocastGuard guard(model, Mode::QAT);
    const Snapshot inside(*model);
    CHECK_THROWS(AutocastGuard(model, Mode::Inference, Recipe().exclude({"none"})));
    CHECK(inside.holds(*model));
    CHECK(quantizes(model, model->fc1));
  }
  CHECK(before.holds(*model));
  CHECK(same(model(x), output));
}

TEST_CASE("the inner scope wins for its subtree and the outer comes back", "[guard][scopes]") {
  Mlp model;
  const Snapshot before(*model);
  {
    const AutocastGuard outer(model, Mode::QAT, Recipe().exclude({"fc2"}));
    CHECK(quantizes(model, model->fc1));
    CHECK_FALSE(quantizes(model, model->fc2));
    {
      const AutocastGuard inner(model, Mode::QAT, Recipe().include({"fc2"}));
      CHECK_FALSE(quantizes(model, model->fc1));
      CHECK(quantizes(model, model->fc2));
      {
        const AutocastGuard innermost(model->fc1, Mode::Inference);
        CHECK(quantizes(model, model->fc2));
        CHECK(calls_of(inner, "fc2") == 2);
      }
      const AutocastGuard off(model, Mode::Off);
      CHECK_FALSE(quantizes(model, model->fc1));
      CHECK_FALSE(quantizes(model, model->fc2));
    }
    CHECK(quantizes(model, model->fc1));
    CHECK_FALSE(quantizes(model, model->fc2));
    CHECK(calls_of(outer, "fc1") == 2);
  }
  CHECK(before.holds(*model));
}

TEST_CASE("the same scope opened twice ends with the second", "[guard][scopes]") {
  Mlp model;
  const Snapshot before(*model);
  auto first = std::make_unique<AutocastGuard>(model, Mode::QAT);
  auto second = std::make_unique<AutocastGuard>(model, Mode::QAT);
  model->fc1(torch::randn({2, 16}));
  CHECK(calls_of(*second, "fc1") == 1);
  first.reset();
  CHECK(quantizes(model, model->fc1));
  second.reset();
  CHECK(before.holds(*model));
}

TEST_CASE("the same scope opened again inside Off wins there", "[guard][scopes]") {
  Mlp model;
  const Snapshot before(*model);
  {
    const AutocastGuard outer(model, Mode::QAT);
    const AutocastGuard off(model, Mode::Off);
    {
      const AutocastGuard again(model, Mode::QAT);
      CHECK(quantizes(model, model->fc1));
    }
    CHECK_FALSE(quantizes(model, model->fc1));
  }
  CHECK(before.holds(*model));
}

TEST_CASE("scopes that end in any order end in the original", "[guard][scopes]") {
  Mlp model;
  const Snapshot before(*model);
  std::vector<std::unique_ptr<AutocastGuard>> guards;
  guards.push_back(std::make_unique<AutocastGuard>(model, Mode::QAT));
  guards.push_back(std::make_unique<AutocastGuard>(model, Mode::Off));
  guards.push_back(std::make_unique<AutocastGuard>(model->fc1, Mode::Inference));
  const auto order = GENERATE(
      std::vector<std::size_t>{0, 1, 2}, std::vector<std::size_t>{0, 2, 1}, std::vector<std::size_t>{1, 0, 2},
      std::vector<std::size_t>{1, 2, 0}, std::vector<std::size_t>{2, 0, 1}, std::vector<std::size_t>{2, 1, 0});
  CAPTURE(order);
  std::vector<bool> open(3, true);
  for (const auto i : order) {
    guards[i].reset();
    open[i] = false;
    const auto y = [&] {
      const torch::NoGradGuard no_grad;
      return model->fc2(torch::ones({1, 32}));
    }();
    const auto plain = torch::linear(torch::ones({1, 32}), model->fc2->weight.detach().clone(), model->fc2->bias.detach());
    CHECK(same(y, plain) == (open[1] || !open[0]));
  }
  CHECK(before.holds(*model));
}

TEST_CASE("a guard may be destroyed by another thread", "[guard][scopes]") {
  Mlp model;
  const Snapshot before(*model);
  auto guard = std::make_unique<AutocastGuard>(model, Mode::QAT);
  CHECK(quantizes(model, model->fc1));
  in_thread([&] { guard.reset(); });
  CHECK(before.holds(*model));
  CHECK_FALSE(quantizes(model, model->fc1));
  const AutocastGuard again(model, Mode::QAT);
  CHECK(quantizes(model, model->fc1));
}

TEST_CASE("a guard outlives the thread that made it", "[guard][scopes]") {
  Mlp model;
  const Snapshot before(*model);
  std::unique_ptr<AutocastGuard> guard;
  in_thread([&] { guard = std::make_unique<AutocastGuard>(model, Mode::QAT); });
  CHECK_FALSE(before.holds(*model));
  const auto x = torch::randn({3, 16});
  CHECK(same(model->fc1(x), torch::addmm(model->fc1->bias, x, model->fc1->weight.t())));
  guard.reset();
  CHECK(before.holds(*model));
}

TEST_CASE("a scope whose thread-local state was put back says so, and goes on", "[guard][scopes]") {
  Mlp model;
  Warnings warnings;
  std::unique_ptr<AutocastGuard> guard;
  SECTION("opened under InferenceMode, asked for a report") {
    {
      const c10::InferenceMode inference_mode;
      guard = std::make_unique<AutocastGuard>(model, Mode::QAT);
    }
    CHECK(warnings.messages.empty());
    guard->report();
    CHECK(warnings.tell_of("InferenceMode"));
    CHECK(quantizes(model, model->fc1));
  }
  SECTION("opened under InferenceMode, closed") {
    {
      const c10::InferenceMode inference_mode;
      guard = std::make_unique<AutocastGuard>(model, Mode::QAT);
    }
    guard.reset();
    CHECK(warnings.tell_of("InferenceMode"));
  }
  SECTION("opened and closed under it") {
    const c10::InferenceMode inference_mode;
    const AutocastGuard inside(model, Mode::QAT);
    CHECK(inside.report().layers.size() == 3);
    CHECK(warnings.messages.empty());
  }
  SECTION("closed under it, while another thread has a scope") {
    guard = std::make_unique<AutocastGuard>(model, Mode::QAT);
    {
      const c10::InferenceMode inference_mode;
      guard.reset();
    }
    std::unique_ptr<AutocastGuard> other;
    in_thread([&] { other = std::make_unique<AutocastGuard>(model, Mode::QAT); });
    const auto x = torch::randn({3, 16});
    CHECK(same(model->fc1(x), torch::addmm(model->fc1->bias, x, model->fc1->weight.t())));
  }
}

TEST_CASE("a scope keeps its model alive, and lets it go", "[guard][scopes]") {
  std::weak_ptr<nn::Module> watched;
  {
    auto model = std::make_shared<MlpImpl>();
    watched = model;
    const AutocastGuard guard(model, Mode::QAT);
    model.reset();
    CHECK_FALSE(watched.expired());
  }
  CHECK(watched.expired());
}

TEST_CASE("child: a guard with static storage duration", "[.][static_guard_child]") {
  static auto* model = new Mlp;
  static const AutocastGuard guard(*model, Mode::QAT);
  (*model)(torch::randn({3, 16}));
  CHECK(all_calls(guard) == 3);
}

TEST_CASE("a guard may live until the process ends", "[guard][scopes]") {
  const auto self = std::filesystem::read_symlink("/proc/self/exe").string();
  CHECK(std::system(("'" + self + "' '[static_guard_child]' > /dev/null").c_str()) == 0);
}

TEST_CASE("the report lists modules that were replaced meanwhile as they were", "[guard][scopes]") {
  nn::Sequential model(nn::Linear(8, 8), nn::LayerNorm(nn::LayerNormOptions({8})), nn::Linear(8, 4));
  const AutocastGuard guard(model, Mode::QAT);
  const auto before = guard.report();
  model->replace_module("1", std::make_shared<nn::IdentityImpl>());
  model->replace_module("2", std::make_shared<nn::IdentityImpl>());
  CHECK(line_of(guard.report(), "1").type == line_of(before, "1").type);
  CHECK(line_of(before, "2").reason.empty());
  CHECK(line_of(guard.report(), "2").reason == "another module has taken its place inside the scope");
  CHECK(line_of(guard.report(), "0").reason.empty());
}
