// Gradients that are added to those of earlier micro-batches by the product that makes them: seen in time and memory only.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

int additions_of(const std::function<void()>& f) { return OperationCounter::calls("add_scaled_mm_", f); }

/// One layer that has the gradient of a first micro-batch, and what a second one alone gives.
struct SecondMicroBatch {
  explicit SecondMicroBatch(at::ScalarType dtype = at::kFloat) {
    torch::manual_seed(301);
    layer->to(dtype);
    x = torch::randn({96, 64}).to(dtype);
    guard.emplace(layer, Mode::QAT, Recipe::int8_training());
    second = torch::autograd::grad({loss()}, {layer->weight})[0];
    loss().backward();
    first = layer->weight.grad().clone();
    loss_ = loss();
  }
  Tensor loss() { return layer->forward(x).pow(2).mean(); }
  Tensor& gradient() { return layer->weight.mutable_grad(); }

  nn::Linear layer{64, 128};
  Tensor x, first, second, loss_;
  std::optional<AutocastGuard> guard;
};

}  // namespace

TEST_CASE("the gradient of a second micro-batch is added by the product that makes it", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  const auto dtype = GENERATE(at::kFloat, at::kHalf, at::kBFloat16);
  SecondMicroBatch s(dtype);
  const auto version = s.gradient()._version();
  const auto* place = s.gradient().const_data_ptr();
  CHECK(additions_of([&] { s.loss_.backward(); }) == 1);
  CHECK(s.gradient().const_data_ptr() == place);
  CHECK(s.gradient()._version() == version + 1);
  const auto expected = s.first.to(at::kDouble) + s.second.to(at::kDouble);
  CHECK(relative_error(s.gradient().to(at::kDouble), expected) < (dtype == at::kFloat ? 1e-6 : 5e-3));
}

TEST_CASE("a gradient that somebody must see is not added unseen", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  SecondMicroBatch s;
  const auto sum = s.first + s.second;
  const auto close = [&](const Tensor& expected) { return relative_error(s.gradient(), expected) < 1e-6; };
  SECTION("by a hook on the leaf") {
    s.layer->weight.register_hook([](const Tensor& gradient) { return gradient * 3; });
    CHECK(additions_of([&] { s.loss_.backward(); }) == 0);
    CHECK(close(s.first + 3 * s.second));
  }
  SECTION("by a hook on the accumulator") {
    struct Hook final : torch::autograd::FunctionPostHook {
      explicit Hook(int* counted) : calls(counted) {}
      torch::autograd::variable_list operator()(
          const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) override {
        ++*calls;
        return outputs;
      }
      int* calls;
    };
    int calls = 0;
    torch::autograd::impl::grad_accumulator(s.layer->weight)->add_post_hook(std::make_unique<Hook>(&calls));
    const auto loss = s.loss();
    CHECK(additions_of([&] { loss.backward(); }) == 0);
    CHECK(calls == 1);
    CHECK(close(sum));
  }
  SECTION("by a hook on the node that makes it") {
    struct Hook final : torch::autograd::FunctionPostHook {
      torch::autograd::variable_list operator()(
          const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) override {
        auto result = outputs;
        result[1] = result[1] * 3;
        return result;
      }
    };
    const auto y = s.layer->forward(s.x);
    y.grad_fn()->add_post_hook(std::make_unique<Hook>());
    CHECK(additions_of([&] { y.pow(2).mean().backward(); }) == 0);
    CHECK(close(s.first + 3 * s.second));
  }
  SECTION("by anomaly mode") {
    const torch::autograd::DetectAnomalyGuard anomaly;
    CHECK(additions_of([&] { s.loss().backward(); }) == 0);
    CHECK(close(sum));
  }
  SECTION("by torch::autograd::grad") {
    Tensor got;
    CHECK(additions_of([&] { got = torch::autograd::grad({s.loss_}, {s.layer->weight})[0]; }) == 0);
    CHECK(same(got, s.second));
    CHECK(same(s.gradient(), s.first));
  }
  SECTION("by a backward of higher order") {
    CHECK(additions_of([&] { s.loss_.backward({}, true, /*create_graph=*/true); }) == 0);
    CHECK(close(sum));
    s.gradient() = Tensor();
  }
  SECTION("by nobody: a backward for chosen leaves") {
    CHECK(additions_of([&] { s.loss_.backward({}, {}, false, std::vector<Tensor>{s.layer->weight}); }) == 1);
    CHECK(close(sum));
    const auto loss = s.loss();
    CHECK(additions_of([&] { loss.backward({}, {}, false, std::vector<Tensor>{s.layer->bias}); }) == 0);
    CHECK(close(sum));
  }
}

TEST_CASE("a gradient in another layout or of another stream is LibTorch's to add to", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  SecondMicroBatch s;
  const auto sum = s.first + s.second;
  SECTION("layout") {
    s.gradient() = s.first.t().contiguous().t();
    CHECK(additions_of([&] { s.loss_.backward(); }) == 0);
  }
  SECTION("stream") {
    const auto impl = c10::impl::VirtualGuardImpl(at::kCUDA);
    impl.synchronizeDevice(test_device().index());
    const auto stream = impl.getStreamFromGlobalPool(test_device(), false);
    Tensor loss;
    {
      const c10::StreamGuard on(stream);
      loss = s.loss();
    }
    impl.synchronizeDevice(test_device().index());
    CHECK(additions_of([&] { loss.backward(); }) == 0);
  }
  CHECK(relative_error(s.gradient(), sum) < 1e-6);
}

TEST_CASE("a weight that is used twice gets both gradients added", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  SecondMicroBatch s;
  const auto loss = s.loss() + s.loss();
  CHECK(additions_of([&] { loss.backward(); }) == 2);
  CHECK(relative_error(s.gradient(), s.first + 2 * s.second) < 1e-6);
}
