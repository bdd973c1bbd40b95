// The graph of the quantized linear layer: what it saves, what it computes and leaves out, when it raises.
#include <te_int8/te_int8.h>

#include "linear_calls.h"
#include "support.h"

using namespace te_int8_test;
using Catch::Matchers::ContainsSubstring;
namespace ops = te_int8::ops;

namespace {

constexpr int64_t kRows = 40, kDepth = 72, kColumns = 24;

at::Tensor input() { return at::randn({kRows, kDepth}); }
at::Tensor weight() { return at::randn({kColumns, kDepth}); }
at::Tensor trained(at::Tensor x) { return x.requires_grad_(); }
/// Requires a gradient without being a leaf, which autograd itself would keep alive.
at::Tensor computed(const at::Tensor& x) { return trained(x) * 1; }

/// Bytes of tensors that this thread has made and not freed since.
class MemoryMeter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override { bytes_ += size; }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

/// Bytes that live on with the result of `layer`, the result itself not counted.
template <typename Layer>
int64_t bytes_saved(const Layer& layer) {
  layer();  // what LibTorch and the library keep once in a process
  const auto meter = std::make_shared<MemoryMeter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
  const auto y = layer();
  return meter->bytes() - static_cast<int64_t>(y.nbytes());
}

constexpr int64_t kInputCodes = kRows * kDepth + 4 * kRows;
constexpr int64_t kWeightCodes = kColumns * kDepth + 4 * kColumns;

bool all_nan(const at::Tensor& x) { return x.isnan().all().item<bool>(); }
bool none_finite(const at::Tensor& x) { return !x.isfinite().any().item<bool>(); }
bool all_finite(const at::Tensor& x) { return x.isfinite().all().item<bool>(); }

/// x without one of its rows.
at::Tensor others(const at::Tensor& x, int64_t row) {
  return at::cat({x.narrow(0, 0, row), x.narrow(0, row + 1, x.size(0) - row - 1)});
}

std::vector<LinearOptions> backward_precisions() {
  return {{}, {.int8_grad_input = true}, {.int8_grad_weight = true},
          {.int8_grad_input = true, .int8_grad_weight = true}};
}

}  // namespace

TEST_CASE("only the codes that a gradient needs are saved for backward", "[gradients][memory]") {
  SKIP_UNLESS_CPU();
  torch::manual_seed(51);
  const auto x = input(), w = weight(), bias = trained(at::randn({kColumns}));
  const auto x_trained = computed(input()), w_trained = trained(weight());
  for (const auto& options : backward_precisions()) {
    CHECK(bytes_saved([&] { return int8_linear(x, w_trained, bias, options); }) == kInputCodes);
    CHECK(bytes_saved([&] { return int8_linear(x_trained, w, bias, options); }) == kWeightCodes);
    CHECK(
        bytes_saved([&] { return int8_linear(x_trained, w_trained, bias, options); }) ==
        kInputCodes + kWeightCodes);
    CHECK(bytes_saved([&] { return int8_linear(x, w, bias, options); }) == 0);
  }
  const auto x_3d = x.view({4, kRows / 4, kDepth});
  CHECK(bytes_saved([&] { return int8_linear(x_3d, w_trained, bias); }) == kInputCodes);
  const auto in_half = x.to(at::kHalf), w_half = w.to(at::kHalf).requires_grad_();
  CHECK(bytes_saved([&] { return int8_linear(in_half, w_half); }) == kInputCodes);
  const auto column_codes = kRows * kDepth + 4 * kDepth;
  CHECK(bytes_saved([&] {
    return int8_linear(x, w_trained, bias, {.int8_output = false, .int8_grad_weight = true});
  }) == column_codes);
}

TEST_CASE("after the scope only what backward needs is left", "[gradients][memory][guard]") {
  SKIP_UNLESS_CPU();
  torch::manual_seed(52);
  const auto x = input(), x_trained = computed(input());
  torch::nn::Linear layer(kDepth, kColumns);
  const auto guarded = [&](const at::Tensor& in) {
    const te_int8::AutocastGuard guard(layer, te_int8::Mode::QAT, te_int8::Recipe::int8_training());
    return layer->forward(in);
  };
  CHECK(bytes_saved([&] { return guarded(x); }) == kInputCodes);
  CHECK(bytes_saved([&] { return guarded(x_trained); }) == kInputCodes + kWeightCodes);
  layer->weight.set_requires_grad(false);
  // The first call leaves the codes of the frozen weight, which the second one finds: no x is saved.
  CHECK(bytes_saved([&] { return guarded(x_trained); }) == 0);
  guarded(x_trained).sum().backward();
  CHECK_FALSE(layer->weight.grad().defined());
}

TEST_CASE("a loss that is kept after its backward keeps no codes", "[gradients][memory][guard]") {
  SKIP_UNLESS_CPU();
  torch::manual_seed(61);
  torch::nn::Linear layer(kDepth, kColumns);
  for (const auto& shape : {std::vector<int64_t>{kRows, kDepth}, {4, kRows / 4, kDepth}}) {
    const auto x = trained(at::randn(shape));
    CHECK(bytes_saved([&] {
      at::Tensor loss;
      {
        const te_int8::AutocastGuard guard(layer, te_int8::Mode::QAT, te_int8::Recipe::int8_training());
        loss = layer->forward(x).sum();
      }
      loss.backward();
      return loss;
    }) == 0);
  }
}

TEST_CASE("neither x nor the weight is kept as floats", "[gradients][memory]") {
  SKIP_UNLESS_CPU();
  torch::manual_seed(53);
  const bool with_weight_gradient = GENERATE(true, false);
  auto x = computed(input()), w = computed(weight());
  if (!with_weight_gradient) w = w.detach();
  const auto truth = int8_linear(x.detach(), w.detach());
  const auto x_storage = x.storage().getWeakStorageImpl(), w_storage = w.storage().getWeakStorageImpl();
  const auto y = int8_linear(x, w);
  x.reset();
  w.reset();
  CHECK(x_storage.expired());
  CHECK(w_storage.expired());
  CHECK(same(y.detach(), truth));
  CHECK_NOTHROW(y.sum().backward());
}

TEST_CASE("a frozen operand gets no gradient and does not change the others", "[gradients]") {
  torch::manual_seed(54);
  const auto x = input(), w = weight(), bias = at::randn({kColumns}), dy = at::randn({kRows, kColumns});
  for (auto options : backward_precisions()) {
    options.int8_output = GENERATE(true, false);
    const auto all = std::array{
        x.clone().requires_grad_(), w.clone().requires_grad_(), bias.clone().requires_grad_()};
    int8_linear(all[0], all[1], all[2], options).backward(dy);
    for (size_t bits = 1; bits < 8; ++bits) {
      const auto leaves = std::array{x.clone(), w.clone(), bias.clone()};
      for (size_t i = 0; i < 3; ++i) leaves[i].set_requires_grad((bits >> i & 1) != 0);
      int8_linear(leaves[0], leaves[1], leaves[2], options).backward(dy);
      INFO("required: x " << (bits & 1) << ", weight " << (bits >> 1 & 1) << ", bias " << (bits >> 2));
      for (size_t i = 0; i < 3; ++i) {
        CHECK(leaves[i].grad().defined() == leaves[i].requires_grad());
        if (leaves[i].requires_grad()) CHECK(same(leaves[i].grad(), all[i].grad()));
      }
    }
    const auto no_bias = std::array{x.clone().requires_grad_(), w.clone().requires_grad_()};
    int8_linear(no_bias[0], no_bias[1], {}, options).backward(dy);
    for (size_t i = 0; i < 2; ++i) CHECK(same(no_bias[i].grad(), all[i].grad()));
  }
}

TEST_CASE("linear_prequantized gives x and bias the gradients of linear", "[gradients]") {
  torch::manual_seed(55);
  const auto w = weight(), dy = at::randn({kRows, kColumns});
  const auto x = trained(input()), bias = trained(at::randn({kColumns}));
  int8_linear(x, w, bias).backward(dy);
  const auto x2 = trained(x.detach().clone()), bias2 = trained(bias.detach().clone());
  const auto [codes, scales] = ops::quantize_rows(w);
  int8_linear_prequantized(x2, codes, scales, bias2).backward(dy);
  CHECK(same(x2.grad(), x.grad()));
  CHECK(same(bias2.grad(), bias.grad()));
  const auto [x_codes, x_scales] = ops::quantize_rows(x.detach());
  const auto bias3 = trained(bias.detach().clone());
  int8_linear_prequantized(x_codes, codes, scales, bias3, x_scales).backward(dy);
  CHECK(same(bias3.grad(), bias.grad()));
}

TEST_CASE("gradients accumulate over backwards and calls", "[gradients]") {
  torch::manual_seed(56);
  const auto x = input(), w = trained(weight()), dy = at::randn({kRows, kColumns});
  for (const auto& options : backward_precisions()) {
    w.mutable_grad() = at::Tensor();
    const auto y = int8_linear(x, w, {}, options);
    y.backward(dy, /*retain_graph=*/true);
    const auto once = w.grad().clone();
    y.backward(dy);
    CHECK(same(w.grad(), once + once));
    int8_linear(x, w, {}, options).backward(dy);
    CHECK(same(w.grad(), once + once + once));
  }
}

TEST_CASE("first-order gradients may be made differentiable, a second order raises", "[gradients][errors]") {
  torch::manual_seed(57);
  using torch::autograd::grad;
  const auto x = trained(input()), w = trained(weight()), bias = trained(at::randn({kColumns}));
  const auto dy = trained(at::randn({kRows, kColumns}));
  for (const auto& options : backward_precisions()) {
    const auto y = int8_linear(x, w, bias, options);
    const auto plain = grad({y}, {x, w, bias}, {dy}, true);
    const auto recorded = grad({y}, {x, w, bias}, {dy}, true, /*create_graph=*/true);
    for (size_t i = 0; i < 3; ++i) CHECK(same(recorded[i].detach(), plain[i]));
    for (const auto& first : recorded) {
      CHECK(first.requires_grad());
      for (const auto& target : {x, w, dy}) {
        CHECK_THAT(
            error_of([&] { grad({first.pow(2).sum()}, {target}, {}, true); }),
            ContainsSubstring("te_int8::linear: expected a first-order backward, got a second one") &&
                ContainsSubstring("no double backward"));
      }
    }
  }
}

TEST_CASE("a dy that is not finite reaches dx and dW, in its own row only", "[gradients][numbers]") {
  torch::manual_seed(58);
  const double bad = GENERATE(NAN, INFINITY, -INFINITY);
  const auto dtype = GENERATE(at::kFloat, at::kHalf, at::kBFloat16);
  for (const auto& options : backward_precisions()) {
    const auto x = trained(input().to(dtype)), w = trained(weight().to(dtype));
    const auto bias = trained(at::randn({kColumns}, dtype));
    auto dy = at::randn({kRows, kColumns}, dtype);
    dy[6][9] = bad;
    int8_linear(x, w, bias, options).backward(dy);
    CHECK(none_finite(x.grad()[6]));
    CHECK(all_finite(others(x.grad(), 6)));
    CHECK(none_finite(w.grad()[9]));
    CHECK(all_finite(others(w.grad(), 9)));
    CHECK(none_finite(bias.grad()[9]));
    CHECK(all_finite(others(bias.grad(), 9)));
  }
}

TEST_CASE("an x or weight that is not finite gives NaN, never a finite number", "[gradients][numbers]") {
  torch::manual_seed(59);
  const double bad = GENERATE(NAN, INFINITY, -INFINITY);
  for (const auto& options : backward_precisions()) {
    auto x = input(), w = weight();
    x[4][7] = bad;
    w[8][3] = bad;
    trained(x);
    trained(w);
    const auto y = int8_linear(x, w, {}, options);
    y.backward(at::ones({kRows, kColumns}));
    CHECK(all_nan(y.detach()[4]));
    CHECK(all_nan(y.detach().select(1, 8)));
    CHECK(all_finite(others(others(y.detach(), 4).t(), 8)));
    CHECK(all_nan(w.grad()));
    CHECK(all_nan(x.grad()));
  }
}

TEST_CASE("strided and expanded dy give the gradients of a contiguous one", "[gradients]") {
  torch::manual_seed(60);
  const auto x = at::randn({5, 8, kDepth}), w = weight();
  const auto base = at::randn({8, 5, kColumns});
  const auto gradients = [&](const at::Tensor& dy, const LinearOptions& options) {
    const auto x_leaf = x.clone().requires_grad_(), w_leaf = w.clone().requires_grad_();
    int8_linear(x_leaf, w_leaf, {}, options).backward(dy);
    return std::pair(x_leaf.grad(), w_leaf.grad());
  };
  for (const auto& options : backward_precisions()) {
    for (const auto& dy : {base.transpose(0, 1), at::scalar_tensor(0.3).expand({5, 8, kColumns}),
                           at::randn({kColumns}).expand({5, 8, kColumns})}) {
      const auto [dx, dw] = gradients(dy, options);
      const auto [dx_contiguous, dw_contiguous] = gradients(dy.contiguous(), options);
      CHECK(relative_error(dx, dx_contiguous) < 1e-6);
      CHECK(relative_error(dw, dw_contiguous) < 1e-6);
    }
  }
}

TEST_CASE("empty batches and layers have gradients of their shapes", "[gradients]") {
  for (auto options : backward_precisions()) {
    options.int8_output = GENERATE(true, false);
    for (const auto& [rows, depth, columns] :
         {std::array<int64_t, 3>{0, 5, 3}, {4, 0, 3}, {4, 5, 0}, {0, 0, 0}}) {
      INFO("M " << rows << " N " << columns << " K " << depth << " output " << options.int8_output);
      const auto x = trained(at::ones({rows, depth})), w = trained(at::ones({columns, depth}));
      const auto bias = trained(at::ones({columns}));
      const auto y = int8_linear(x, w, bias, options);
      y.backward(at::ones({rows, columns}));
      CHECK(same(y.detach(), at::ones({rows, columns}) * static_cast<double>(depth) + 1));
      CHECK(same(x.grad(), at::full({rows, depth}, static_cast<double>(columns))));
      CHECK(same(w.grad(), at::full({columns, depth}, static_cast<double>(rows))));
      CHECK(same(bias.grad(), at::full({columns}, static_cast<double>(rows))));
    }
  }
}

TEST_CASE("a forward-mode tangent raises instead of being lost", "[gradients][errors]") {
  const auto level = static_cast<int64_t>(torch::autograd::forward_ad::enter_dual_level());
  torch::nn::Linear layer(kDepth, kColumns);
  const auto x = at::randn({2, 3, kDepth});
  const auto check = [](const std::string& message) {
    CHECK(message.find("expected operands without a forward-mode tangent") != std::string::npos);
  };
  const auto dual = at::_make_dual(x, at::ones_like(x), level);
  check(error_of([&] { int8_linear(dual, layer->weight.detach()); }));
  {
    const te_int8::AutocastGuard guard(layer, te_int8::Mode::QAT);
    const at::NoGradGuard no_grad;
    check(error_of([&] { layer->forward(dual); }));
    check(error_of([&] {
      layer->bias = at::_make_dual(layer->bias.detach(), at::ones({kColumns}), level);
      layer->forward(x);
    }));
  }
  torch::autograd::forward_ad::exit_dual_level(static_cast<uint64_t>(level));
}
