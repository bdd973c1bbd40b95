// Several threads with one model: they join one scope, attach to it, or compute in full precision.
#include <atomic>
#include <barrier>
#include <functional>
#include <future>

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// Runs f(i) in `count` threads at once. What they throw is thrown here.
void in_threads(int count, const std::function<void(int)>& f) {
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(count));
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      const TestDevice same_device;
      try {
        f(i);
      } catch (...) {
        errors[static_cast<std::size_t>(i)] = std::current_exception();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

/// Catch2's assertions are for one thread; the others count.
struct Failures {
  std::atomic<int> count{0};
  void unless(bool condition) { count += !condition; }
};

Tensor plain_result(Mlp& model, const Tensor& x) {
  const torch::NoGradGuard no_grad;
  return model(x);
}
Tensor quantized_result(Mlp& model, const Tensor& x) {
  const auto hidden = torch::relu(int8_result(*model->fc1, x));
  return int8_result(*model->head, torch::relu(int8_result(*model->fc2, hidden)));
}

/// Calls a module in its backward again, as checkpointing does.
struct Recompute : torch::autograd::Function<Recompute> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, MlpImpl* model) {
    ctx->save_for_backward({x});
    ctx->saved_data["model"] = reinterpret_cast<int64_t>(model);
    return model->forward(x);
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx, torch::autograd::variable_list gradients) {
    auto* model = reinterpret_cast<MlpImpl*>(ctx->saved_data["model"].toInt());
    const torch::AutoGradMode grad_mode(true);
    auto x = ctx->get_saved_variables()[0].detach().set_requires_grad(true);
    const auto y = model->forward(x);
    torch::autograd::backward({y}, {gradients[0]});
    return {x.grad(), Tensor()};
  }
};

}  // namespace

TEST_CASE("eight threads join one scope that ends with the last of them", "[guard][threads]") {
  constexpr int kThreads = 8;
  Mlp model;
  const Snapshot before(*model);
  const auto x = torch::randn({3, 16});
  const auto expected = quantized_result(model, x);
  std::barrier<> everybody(kThreads);
  std::array<nn::Module*, kThreads> shown{};
  std::array<int64_t, kThreads> calls{};
  Failures failures;
  in_threads(kThreads, [&](int i) {
    auto guard = std::make_unique<AutocastGuard>(model, Mode::Inference, Recipe().weights(te_int8::Granularity::per_row()));
    everybody.arrive_and_wait();
    shown[static_cast<std::size_t>(i)] = model->named_children()["fc1"].get();
    failures.unless(same(plain_result(model, x), expected));
    everybody.arrive_and_wait();
    calls[static_cast<std::size_t>(i)] = all_calls(*guard);
    for (int leaving = 0; leaving < kThreads; ++leaving) {  // one after another
      if (leaving == i) guard.reset();
      everybody.arrive_and_wait();
      failures.unless(before.holds(*model) == (leaving == kThreads - 1));
      if (guard) failures.unless(same(plain_result(model, x), expected));
      everybody.arrive_and_wait();
    }
  });
  CHECK(failures.count == 0);
  CHECK(std::ranges::all_of(shown, [&](auto* module) { return module == shown[0]; }));
  CHECK(std::ranges::all_of(calls, [](auto count) { return count == 3 * kThreads; }));
  CHECK(before.holds(*model));
}

TEST_CASE("another recipe or mode from another thread is an error that says what to do", "[guard][threads]") {
  Mlp model;
  const Snapshot before(*model);
  {
    const AutocastGuard guard(model, Mode::QAT);
    const Snapshot inside(*model);
    const auto refused = [&](const std::function<void()>& open) {
      std::string message;
      in_thread([&] { message = error_of(open); });
      CAPTURE(message);
      CHECK(message.find("te_int8::AutocastGuard") != std::string::npos);
      CHECK(message.find("attach()") != std::string::npos);
      CHECK(message.find("'fc1'") + message.find("''") != 2 * std::string::npos);
      CHECK(inside.holds(*model));
    };
    refused([&] { AutocastGuard(model, Mode::Inference); });
    refused([&] { AutocastGuard(model, Mode::Off); });
    refused([&] { AutocastGuard(model, Mode::QAT, Recipe::switchback()); });
    refused([&] { AutocastGuard(model->fc1, Mode::QAT); });
    in_thread([&] { CHECK_NOTHROW(AutocastGuard(model, Mode::QAT)); });
    CHECK(inside.holds(*model));
  }
  in_thread([&] { CHECK_NOTHROW(AutocastGuard(model, Mode::Inference)); });
  CHECK(before.holds(*model));
}

TEST_CASE("a thread that neither guards nor attaches computes in full precision", "[guard][threads]") {
  Mlp model;
  const auto x = GENERATE(torch::randn({3, 16}), torch::randn({2, 3, 16}));
  const auto plain = plain_result(model, x);
  const AutocastGuard guard(model, Mode::QAT);
  Tensor y;
  in_thread([&] {
    y = model(x);
    y.sum().backward();
  });
  CHECK(same(y.detach(), plain));
  CHECK(all_calls(guard) == 0);
  CHECK(model->fc1->weight.grad().defined());
}

TEST_CASE("an attached thread computes in INT8, and only while it is attached", "[guard][threads]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  const auto plain = plain_result(model, x), expected = quantized_result(model, x);
  const AutocastGuard guard(model, Mode::QAT);
  in_thread([&] {
    {
      const auto attachment = guard.attach();
      CHECK(same(plain_result(model, x), expected));
      CHECK(all_calls(guard) == 3);
    }
    CHECK(same(plain_result(model, x), plain));
  });
  CHECK(all_calls(guard) == 3);
}

TEST_CASE("an attachment keeps the scope open when it outlives the guard", "[guard][threads]") {
  Mlp model;
  const Snapshot before(*model);
  const auto x = torch::randn({3, 16});
  const auto expected = quantized_result(model, x);
  auto guard = std::make_unique<AutocastGuard>(model, Mode::QAT);
  std::barrier<> both(2);
  std::thread worker([&] {
    const TestDevice same_device;
    const auto attachment = guard->attach();
    both.arrive_and_wait();
    both.arrive_and_wait();  // the guard is gone
    CHECK(same(plain_result(model, x), expected));
  });
  both.arrive_and_wait();
  guard.reset();
  both.arrive_and_wait();
  worker.join();
  CHECK(before.holds(*model));
}

TEST_CASE("an attached thread may open a scope of its own inside", "[guard][threads]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  const auto plain = plain_result(model, x), expected = quantized_result(model, x);
  const AutocastGuard guard(model, Mode::QAT);
  in_thread([&] {
    const auto attachment = guard.attach();
    const AutocastGuard off(model, Mode::Off);
    CHECK(same(plain_result(model, x), plain));
    in_thread([&] { CHECK(same(plain_result(model, x), plain)); });
  });
  CHECK(same(plain_result(model, x), expected));
}

TEST_CASE("many forwards and backwards at once give the same bits", "[guard][threads]") {
  Mlp model;
  const auto x = torch::randn({5, 16}), rows = torch::randn({2, 5, 16});
  const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training());
  const auto expected = quantized_result(model, x), expected_rows = quantized_result(model, rows);
  const auto gradients = torch::autograd::grad({model(x).sum()}, model->parameters());
  Failures failures;
  in_threads(8, [&](int) {
    const auto attachment = guard.attach();
    for (int i = 0; i < 10; ++i) {
      const auto y = model(x);
      failures.unless(same(y.detach(), expected));
      failures.unless(same(model(rows).detach(), expected_rows));
      const auto now = torch::autograd::grad({y.sum()}, model->parameters());
      for (std::size_t p = 0; p < now.size(); ++p) failures.unless(same(now[p], gradients[p]));
    }
  });
  CHECK(failures.count == 0);
  CHECK(all_calls(guard) == 3 + 8 * 10 * 2 * 3);
}

TEST_CASE("threads that open and close scopes over one model at will leave it as it was", "[guard][threads]") {
  Mlp model;
  const Snapshot before(*model);
  const auto x = torch::randn({3, 16});
  const auto plain = plain_result(model, x), expected = quantized_result(model, x);
  Failures failures;
  in_threads(6, [&](int) {
    for (int i = 0; i < 30; ++i) {
      {
        const AutocastGuard guard(model, Mode::Inference);
        failures.unless(same(plain_result(model, x), expected));
      }
      failures.unless(same(plain_result(model, x), plain));
    }
  });
  CHECK(failures.count == 0);
  CHECK(before.holds(*model));
}

TEST_CASE("threads with models of their own do not meet", "[guard][threads]") {
  Failures failures;
  in_threads(6, [&](int i) {
    Mlp model;
    const auto x = torch::randn({3, 16});
    const auto expected = quantized_result(model, x);
    const auto recipe = i % 2 == 0 ? Recipe::qat() : Recipe::switchback();
    for (int round = 0; round < 20; ++round) {
      const AutocastGuard guard(model, Mode::QAT, recipe);
      const auto y = model(x);
      failures.unless(same(y.detach(), expected));
      y.sum().backward();
      failures.unless(all_calls(guard) == 3);
    }
  });
  CHECK(failures.count == 0);
}

TEST_CASE("backward runs in any thread, inside the scope and after it", "[guard][threads]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  const auto gradients = [&](bool other_thread, bool after) {
    model->zero_grad();
    auto guard = std::make_unique<AutocastGuard>(model, Mode::QAT, Recipe::switchback());
    const auto loss = model(x).pow(2).sum();
    if (after) guard.reset();
    if (other_thread) {
      in_thread([&] { loss.backward(); });
    } else {
      loss.backward();
    }
    std::vector<Tensor> result;
    for (const auto& parameter : model->parameters()) result.push_back(parameter.grad().clone());
    return result;
  };
  const auto expected = gradients(false, false);
  for (const auto& [other_thread, after] : {std::pair(true, false), {false, true}, {true, true}}) {
    const auto now = gradients(other_thread, after);
    for (std::size_t i = 0; i < now.size(); ++i) CHECK(same(now[i], expected[i]));
  }
}

TEST_CASE("a forward that is computed again in the backward is quantized in the scope", "[guard][threads]") {
  Mlp model;
  auto x = torch::randn({3, 16}).set_requires_grad(true);
  const AutocastGuard guard(model, Mode::QAT);
  const auto expected = torch::autograd::grad({model(x).sum()}, {x});
  Recompute::apply(x, model.get()).sum().backward();
  CHECK(same(x.grad(), expected[0]));
  CHECK(all_calls(guard) == 9);
}

TEST_CASE("a thread that inherits LibTorch's state but no scope computes in full precision", "[guard][threads]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  const auto plain = plain_result(model, x), expected = quantized_result(model, x);
  const AutocastGuard guard(model, Mode::QAT);
  const at::ThreadLocalState state;
  in_thread([&] {
    const at::ThreadLocalStateGuard inherited(state);
    CHECK(same(plain_result(model, x), plain));
    const auto attachment = guard.attach();
    CHECK(same(plain_result(model, x), expected));
  });
}

TEST_CASE("a task of LibTorch's thread pool is no part of the scope", "[guard][threads]") {
  Mlp model;
  const auto x = torch::randn({3, 16});
  const auto plain = plain_result(model, x), expected = quantized_result(model, x);
  const AutocastGuard guard(model, Mode::QAT);
  std::promise<Tensor> result;
  at::launch([&] {
    const TestDevice same_device;
    result.set_value(plain_result(model, x));
  });
  CHECK(same(result.get_future().get(), plain));
  CHECK(all_calls(guard) == 0);
  CHECK(same(plain_result(model, x), expected));
}

TEST_CASE("a model that multiplies while it is destroyed may die with its scope", "[guard][threads]") {
  struct Multiplies : OneLayerImpl {
    ~Multiplies() override { torch::mm(torch::ones({2, 2}), torch::ones({2, 2})); }
  };
  OneLayer other;
  auto model = std::make_shared<Multiplies>();
  auto guard = std::make_unique<AutocastGuard>(model, Mode::QAT);
  const AutocastGuard keeps_the_key(other, Mode::QAT);
  const std::weak_ptr<Multiplies> watched = model;
  model.reset();
  std::thread([&] { guard.reset(); }).join();
  torch::mm(torch::ones({2, 2}), torch::ones({2, 2}));
  CHECK(watched.expired());
}
