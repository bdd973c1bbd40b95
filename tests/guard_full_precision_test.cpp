// Recipe::allow_full_precision: calls that full precision computes in less time.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include <torch/csrc/autograd/forward_grad.h>

#include <te_int8/detail/faster_way.h>

#include "guard_support.h"

using namespace te_int8_test;
using te_int8::Operation;
using te_int8::detail::CallKind;
using te_int8::detail::ForcedAnswer;
using te_int8::detail::is_faster_in_full_precision;

namespace {

const auto kAllowed = Recipe().allow_full_precision(true);

/// Of a kind that no layer of these tests has.
CallKind kind_of(int64_t rows, std::vector<int64_t> sizes) {
  return {Operation::Linear, torch::kCPU, {torch::kFloat}, rows, std::move(sizes)};
}

/// A way that takes `milliseconds` and counts its calls.
struct Way {
  int milliseconds;
  std::atomic<int> calls = 0;
  void operator()() {
    ++calls;
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  }
};

/// Asks with such ways. An answer that is known takes no call.
bool ask(const CallKind& kind, Way& int8, Way& full_precision) {
  return is_faster_in_full_precision(kind, std::ref(int8), std::ref(full_precision));
}

te_int8::LayerReport only_layer(const AutocastGuard& guard) { return guard.report().layers.at(0); }

}  // namespace

TEST_CASE("of two ways the faster one is found, once for all calls of a kind", "[guard][recipe]") {
  Way slow{3}, fast{0};
  CHECK(ask(kind_of(1000, {1}), slow, fast));
  CHECK(slow.calls == fast.calls);
  CHECK(slow.calls >= 3);
  const int calls = slow.calls;
  CHECK(ask(kind_of(1000, {1}), slow, fast));
  CHECK(ask(kind_of(1001, {1}), slow, fast));  // of the same bucket
  CHECK(slow.calls == calls);
  CHECK_FALSE(ask(kind_of(2000, {1}), fast, slow));
  CHECK_FALSE(ask(kind_of(1000, {2}), fast, slow));
  CHECK(slow.calls > calls);
}

TEST_CASE("slow ways are timed three times", "[guard][recipe]") {
  Way slow{60}, slower{90};
  CHECK_FALSE(ask(kind_of(1000, {3}), slow, slower));
  CHECK(slow.calls == 3);
  CHECK(slower.calls == 3);
}

TEST_CASE("on devices that are not timed calls stay in INT8", "[guard][recipe]") {
  Way slow{1}, fast{0};
  auto kind = kind_of(1000, {4});
  kind.device = c10::Device(torch::kMeta);
  CHECK_FALSE(ask(kind, slow, fast));
  CHECK(slow.calls + fast.calls == 0);
}

TEST_CASE("while a thread is timing others stay in INT8", "[guard][recipe]") {
  Way fast{0}, untimed{0};
  bool others = true;
  const auto asks_elsewhere = [&] {
    std::thread([&] { others = others && ask(kind_of(1000, {5}), untimed, untimed); }).join();
  };
  CHECK(is_faster_in_full_precision(kind_of(1000, {6}), [&] { asks_elsewhere(); }, std::ref(fast)));
  CHECK_FALSE(others);
  CHECK(untimed.calls == 0);
}

TEST_CASE("an error of full precision leaves the call in INT8, one of INT8 comes through", "[guard][recipe]") {
  Way way{0};
  const auto fails = [] { TORCH_CHECK(false, "no memory"); };
  CHECK_FALSE(is_faster_in_full_precision(kind_of(1000, {7}), std::ref(way), fails));
  CHECK(error_of([&] { is_faster_in_full_precision(kind_of(1000, {8}), fails, std::ref(way)); }).find("no memory") != std::string::npos);
  Way slow{3};
  CHECK(ask(kind_of(1000, {8}), slow, way));  // it can still be timed
}

TEST_CASE("a layer leaves INT8 only where it may", "[guard][recipe]") {
  torch::manual_seed(91);
  OneLayer model;
  const auto x = GENERATE(torch::randn({6, 8}), torch::randn({2, 3, 8}), torch::randn({8}));
  Tensor full_precision;
  {
    const torch::NoGradGuard no_grad;
    full_precision = model(x);
  }
  const auto int8 = int8_result(*model->fc, x);
  REQUIRE_FALSE(same(full_precision, int8));
  const ForcedAnswer forced(true);
  SECTION("in Mode::Inference, and the report tells") {
    const torch::NoGradGuard no_grad;
    const AutocastGuard guard(model, Mode::Inference, kAllowed);
    CHECK(same(model(x), full_precision));
    CHECK(same(model->fc->forward(x), full_precision));
    CHECK(only_layer(guard).calls == 2);
    CHECK(only_layer(guard).reason == "2 of 2 calls in full precision, which is faster for their shapes");
  }
  SECTION("by a rule for the layer") {
    const torch::NoGradGuard no_grad;
    const AutocastGuard guard(model, Mode::Inference, Recipe().rule("fc", kAllowed));
    CHECK(same(model(x), full_precision));
  }
  SECTION("by itself") {
    const torch::NoGradGuard no_grad;
    te_int8::QuantizedLinear layer(model->fc.ptr(), Mode::Inference, kAllowed);
    CHECK(same(layer->forward(x), full_precision));
  }
  SECTION("in InferenceMode") {
    const c10::InferenceMode inference_mode;
    const AutocastGuard guard(model, Mode::Inference, kAllowed);
    CHECK(same(model(x), full_precision));
  }
  SECTION("not unless the recipe allows it") {
    const torch::NoGradGuard no_grad;
    const AutocastGuard guard(model, Mode::Inference);
    CHECK(same(model(x), int8));
    CHECK(only_layer(guard).reason.empty());
  }
  SECTION("not where the recipe names a back end") {
    const torch::NoGradGuard no_grad;
    const auto name = only_layer(AutocastGuard(model, Mode::Inference)).backend;
    const AutocastGuard guard(model, Mode::Inference, Recipe(kAllowed).backend(name));
    CHECK(same(model(x), int8));
  }
  SECTION("not in training") {
    const AutocastGuard guard(model, Mode::QAT, kAllowed);
    CHECK(same(model(x).detach(), int8));
  }
}

TEST_CASE("a model whose calls are all faster in full precision gives what it gives without a scope", "[guard][recipe]") {
  torch::manual_seed(92);
  const torch::NoGradGuard no_grad;
  const ForcedAnswer forced(true);
  nn::TransformerEncoderLayer encoder(nn::TransformerEncoderLayerOptions(16, 2).dim_feedforward(24));  // its projections are slices
  encoder->eval();
  const auto x = torch::randn({5, 3, 16});
  const auto expected = encoder->forward(x);
  const AutocastGuard guard(encoder, Mode::Inference, kAllowed);
  CHECK(same(encoder->forward(x), expected));
}

TEST_CASE("convolutions leave INT8 too, in each number of dimensions", "[guard][recipe]") {
  torch::manual_seed(93);
  const torch::NoGradGuard no_grad;
  const auto check = [](auto layer, const Tensor& x) {
    const auto full_precision = layer->forward(x);
    const auto run = [&](const Recipe& recipe) {
      const AutocastGuard guard(layer, Mode::Inference, recipe);
      return layer->forward(x);
    };
    const auto int8 = run({});
    REQUIRE_FALSE(same(int8, full_precision));
    {
      const ForcedAnswer forced(true);
      CHECK(same(run(kAllowed), full_precision));
    }
    {
      const ForcedAnswer forced(false);
      CHECK(same(run(kAllowed), int8));
    }
    const auto measured = run(kAllowed);
    CHECK((same(measured, full_precision) || same(measured, int8)));
    CHECK(same(run(kAllowed), measured));
  };
  check(nn::Conv1d(nn::Conv1dOptions(8, 20, 5).stride(2).dilation(2)), torch::randn({3, 8, 61}));
  check(nn::Conv2d(nn::Conv2dOptions(24, 24, 3).padding(1).groups(24)), torch::randn({2, 24, 17, 15}));
  check(nn::Conv2d(nn::Conv2dOptions(4, 6, 3).padding({1, 2}).padding_mode(torch::kCircular).bias(false)), torch::randn({2, 4, 7, 9}));
  check(nn::Conv3d(nn::Conv3dOptions(2, 4, {1, 3, 2})), torch::randn({2, 2, 3, 5, 4}));
}

TEST_CASE("under autocast either way gives the autocast dtype, of inputs that have it already too", "[guard][recipe]") {
  torch::manual_seed(94);
  const torch::NoGradGuard no_grad;
  nn::Sequential convolutions(
      nn::Conv2d(nn::Conv2dOptions(4, 16, 3)), nn::Conv2d(nn::Conv2dOptions(16, 16, 3).groups(16)),
      nn::Conv2d(nn::Conv2dOptions(16, 4, 1).bias(false)));
  Mlp mlp;
  const auto image = torch::randn({2, 4, 9, 9}), x = GENERATE(torch::randn({7, 16}), torch::randn({2, 3, 16}));
  const Bf16Autocast autocast;
  const auto expected_image = convolutions->forward(image), expected = mlp(x);
  const auto run = [&] {
    const AutocastGuard of_image(convolutions, Mode::Inference, kAllowed), of_x(mlp, Mode::Inference, kAllowed);
    return std::pair(convolutions->forward(image), mlp(x));
  };
  {
    const ForcedAnswer forced(true);
    const auto [of_image, of_x] = run();
    CHECK(same(of_image, expected_image));
    CHECK(same(of_x, expected));
  }
  {
    const ForcedAnswer forced(false);
    const auto [of_image, of_x] = run();
    CHECK_FALSE(same(of_x, expected));
    CHECK(of_image.scalar_type() == torch::kBFloat16);
    CHECK(of_x.scalar_type() == torch::kBFloat16);
  }
  const auto [of_image, of_x] = run();  // as timed
  CHECK(of_image.scalar_type() == torch::kBFloat16);
  CHECK(of_x.scalar_type() == torch::kBFloat16);
}

TEST_CASE("a forward-mode tangent is refused whichever way is faster", "[guard][recipe]") {
  OneLayer model;
  const torch::NoGradGuard no_grad;
  const bool in_full_precision = GENERATE(false, true);
  const ForcedAnswer forced(in_full_precision);
  const AutocastGuard guard(model, Mode::Inference, kAllowed);
  const auto level = torch::autograd::ForwardADLevel::get_next_idx();
  auto x = torch::randn({3, 8});
  x._set_fw_grad(torch::ones({3, 8}), level, /*is_inplace_op=*/false);
  CHECK(error_of([&] { model(x); }).find("tangent") != std::string::npos);
  torch::autograd::ForwardADLevel::release_idx(level);
}
