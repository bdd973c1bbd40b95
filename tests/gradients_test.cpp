// Gradients of the quantized linear layer against their definition: fake quantization in plain LibTorch
// operations, and for INT8 backwards the quantized matmuls that docs/design.md ("Numbers") names.
#include <te_int8/te_int8.h>

#include "linear_calls.h"
#include "support.h"

using namespace te_int8_test;
namespace ops = te_int8::ops;

namespace {

constexpr int64_t kRows = 48, kDepth = 70, kColumns = 33;

struct Problem {
  at::Tensor x, weight, bias, dy;
};

/// Rows of different norms; a row of x, of the weight and of dy, and a column of dy, are zero.
Problem problem(at::ScalarType dtype, double dy_size, bool three_dimensions = false) {
  auto x = at::randn({kRows, kDepth}).mul_(at::randn({kRows, 1}).exp_());
  auto weight = at::randn({kColumns, kDepth}).mul_(at::randn({kColumns, 1}).exp_().mul_(0.1));
  auto dy = at::randn({kRows, kColumns}).mul_(dy_size);
  x[3].zero_();
  weight[2].zero_();
  dy[5].zero_();
  dy.select(1, 4).zero_();
  if (three_dimensions) {
    x = x.view({6, kRows / 6, kDepth});
    dy = dy.view({6, kRows / 6, kColumns});
  }
  return {x.to(dtype), weight.to(dtype), at::randn({kColumns}).to(dtype), dy.to(dtype)};
}

struct Gradients {
  at::Tensor y, dx, dw, db;
};

/// Runs `layer` on leaves and differentiates it.
template <typename Layer>
Gradients gradients(const Problem& p, const Layer& layer) {
  const auto leaf = [](const at::Tensor& t) { return t.detach().clone().requires_grad_(); };
  const auto x = leaf(p.x), weight = leaf(p.weight), bias = leaf(p.bias);
  const auto y = layer(x, weight, bias);
  y.backward(p.dy.to(y.scalar_type()));
  return {y.detach(), x.grad(), weight.grad(), bias.grad()};
}

/// x^ = x + (fake(x) - x).detach(): the value of the dequantized codes, the gradient of x.
at::Tensor fake_quantize(const at::Tensor& x, bool per_tensor) {
  const auto values = x.detach().to(at::kFloat);
  const auto amax = per_tensor ? values.abs().amax() : values.abs().amax({-1}, /*keepdim=*/true);
  const auto limit = at::full_like(amax, 127.0);
  const auto codes = (values * at::where(amax > 0, limit / amax, 0.0)).round().clamp(-127, 127);
  return x + ((codes * (amax / limit)).to(x.scalar_type()) - x).detach();
}

/// The definition, in double so that only the library's own rounding counts.
Gradients by_fake_quantization(const Problem& p, const LinearOptions& options = {}) {
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  return gradients({wide(p.x), wide(p.weight), wide(p.bias), p.dy}, [&](auto& x, auto& w, auto& b) {
    return at::linear(
        fake_quantize(x, options.x_granularity == "tensor"),
        fake_quantize(w, options.weight_granularity == "tensor"), b);
  });
}

void check_close(const Gradients& got, const Gradients& truth, double tolerance) {
  CHECK(relative_error(got.y, truth.y) < tolerance);
  CHECK(relative_error(got.dx, truth.dx) < tolerance);
  CHECK(relative_error(got.dw, truth.dw) < tolerance);
  CHECK(relative_error(got.db, truth.db) < tolerance);
}

double tolerance(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble ? 1e-5 : 1e-2;
}

Gradients of_operation(const Problem& p, const LinearOptions& options = {}) {
  return gradients(p, [&](auto& x, auto& w, auto& b) { return int8_linear(x, w, b, options); });
}

/// Calls a guarded layer with these parameters; its backward runs after the scope.
Gradients of_guarded_layer(const Problem& p, const te_int8::Recipe& recipe) {
  return gradients(p, [&](auto& x, auto& weight, auto& bias) {
    torch::nn::Linear layer(weight.size(1), weight.size(0));
    layer->weight = weight;
    layer->bias = bias;
    const te_int8::AutocastGuard guard(layer, te_int8::Mode::QAT, recipe);
    return layer->forward(x);
  });
}

/// One backward matmul at Precision::Int8: `dy` [R,C] quantized by row times `operand` [C,D], from its
/// codes if it has any.
at::Tensor int8_product(const at::Tensor& dy, const at::Tensor& operand) {
  const auto [dy_codes, dy_scales] = ops::quantize_rows(dy);
  const auto [codes, scales] = ops::quantize_rows(operand.t());
  return ops::scaled_mm(dy_codes, codes, dy_scales, scales, {}, dy.scalar_type());
}

}  // namespace

TEST_CASE("gradients are those of fake quantization in plain operations", "[gradients]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16);
  const auto dy_size = GENERATE(1.0, 1e-4);
  const bool three_dimensions = GENERATE(false, true);
  torch::manual_seed(41);
  const auto p = problem(dtype, dy_size, three_dimensions);
  INFO(dtype << ", dy " << dy_size << ", x " << p.x.sizes());
  for (const auto* x_granularity : {"row", "tensor"}) {
    for (const auto* weight_granularity : {"row", "tensor"}) {
      INFO("x by " << x_granularity << ", weight by " << weight_granularity);
      const LinearOptions options{.x_granularity = x_granularity, .weight_granularity = weight_granularity};
      const auto got = of_operation(p, options);
      check_close(got, by_fake_quantization(p, options), tolerance(dtype));
      CHECK(got.dx.scalar_type() == dtype);
      CHECK(got.dw.scalar_type() == dtype);
      CHECK(got.db.scalar_type() == dtype);
    }
  }
}

TEST_CASE("gradients of a guarded layer are those of fake quantization", "[gradients][guard]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16);
  const auto dy_size = GENERATE(1.0, 1e-4);
  const bool three_dimensions = GENERATE(false, true);
  torch::manual_seed(42);
  const auto p = problem(dtype, dy_size, three_dimensions);
  INFO(dtype << ", dy " << dy_size << ", x " << p.x.sizes());
  check_close(of_guarded_layer(p, {}), by_fake_quantization(p), tolerance(dtype));
  const auto per_tensor = te_int8::Recipe()
                              .activations(te_int8::Granularity::per_tensor())
                              .weights(te_int8::Granularity::per_tensor());
  check_close(
      of_guarded_layer(p, per_tensor),
      by_fake_quantization(p, {.x_granularity = "tensor", .weight_granularity = "tensor"}),
      tolerance(dtype));
}

TEST_CASE("under bf16 autocast gradients come in the dtype of the parameters", "[gradients][autocast]") {
  torch::manual_seed(43);
  const auto p = problem(at::kFloat, GENERATE(1.0, 1e-4));
  const auto truth = by_fake_quantization(p);
  const bool guarded = GENERATE(false, true);
  const auto got = [&] {
    const Bf16Autocast autocast;
    return guarded ? of_guarded_layer(p, {}) : of_operation(p);
  }();
  CHECK(got.y.scalar_type() == at::kBFloat16);
  for (const auto& gradient : {got.dx, got.dw, got.db}) CHECK(gradient.scalar_type() == at::kFloat);
  check_close(got, truth, 1e-2);
}

TEST_CASE("each backward matmul has the precision it was asked for", "[gradients][numbers]") {
  const auto dtype = GENERATE(at::kFloat, at::kHalf, at::kBFloat16);
  const auto* granularity = GENERATE("row", "tensor");
  torch::manual_seed(44);
  const auto p = problem(dtype, 1e-2, GENERATE(false, true));
  const auto x = p.x.view({kRows, kDepth}), dy = p.dy.view({kRows, kColumns});
  for (int bits = 0; bits < 8; ++bits) {
    const LinearOptions options{
        .int8_output = (bits & 1) != 0, .int8_grad_input = (bits & 2) != 0,
        .int8_grad_weight = (bits & 4) != 0, .x_granularity = granularity,
        .weight_granularity = granularity};
    INFO(dtype << " by " << granularity << ", output " << options.int8_output << ", grad_input "
               << options.int8_grad_input << ", grad_weight " << options.int8_grad_weight);
    // The operands of the backward: what the forward used.
    const auto operand = [&](const at::Tensor& values) {
      if (!options.int8_output) return values.to(at::kFloat);
      const auto [codes, scales] = ops::quantize_rows(values, granularity);
      return codes.to(at::kFloat) * scales.unsqueeze(1);
    };
    const auto x_hat = operand(x), w_hat = operand(p.weight);
    const auto got = of_operation(p, options);
    const auto dx = got.dx.view({kRows, kDepth});
    if (options.int8_grad_input) {
      CHECK(same(dx, int8_product(dy, w_hat)));
    } else {
      CHECK(relative_error(dx, dy.to(at::kFloat).matmul(w_hat)) < tolerance(dtype));
    }
    if (options.int8_grad_weight) {
      CHECK(same(got.dw, int8_product(dy.t(), x_hat)));
    } else {
      CHECK(relative_error(got.dw, dy.to(at::kFloat).t().matmul(x_hat)) < tolerance(dtype));
    }
    CHECK(relative_error(got.db, dy.to(at::kFloat).sum(0)) < tolerance(dtype));

    if (bits == 0) continue;  // nothing for a scope to do
    const auto precision = [](bool int8) {
      return int8 ? te_int8::Precision::Int8 : te_int8::Precision::Full;
    };
    const auto scales = granularity == std::string_view("row") ? te_int8::Granularity::per_row()
                                                               : te_int8::Granularity::per_tensor();
    const auto guarded = of_guarded_layer(
        p, te_int8::Recipe()
               .output(precision(options.int8_output))
               .grad_input(precision(options.int8_grad_input))
               .grad_weight(precision(options.int8_grad_weight))
               .activations(scales)
               .weights(scales));
    // A full-precision output is LibTorch's own arithmetic, which differs between the two ways.
    if (options.int8_output) CHECK(same(guarded.y, got.y));
    CHECK(same(guarded.dx, got.dx));
    CHECK(same(guarded.dw, got.dw));
    CHECK(same(guarded.db, got.db));
  }
}

TEST_CASE("a full-precision backward sees code times scale, rounded once", "[gradients][numbers]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16);
  torch::manual_seed(46);
  // With the identity for dy the gradients are the dequantized operands themselves. The small rows have
  // scales that are zero in half.
  const auto x = (at::randn({kColumns, kDepth}) * at::logspace(-5, 1, kColumns).unsqueeze(1)).to(dtype);
  const auto p = Problem{x, x.flip(1), at::zeros({kColumns}, dtype), at::eye(kColumns, dtype)};
  const auto got = of_operation(p);
  const auto dequantized = [&](const at::Tensor& values) {
    const auto [codes, scales] = ops::quantize_rows(values);
    return (codes.to(at::kFloat) * scales.unsqueeze(1)).to(dtype);
  };
  CHECK(at::equal(got.dw, dequantized(p.x)));
  CHECK(at::equal(got.dx, dequantized(p.weight)));
}

TEST_CASE("INT8 weight gradients are as close as the design says", "[gradients][numbers]") {
  constexpr int64_t rows = 4096, width = 768;
  struct Data {
    const char* name;
    double expected;
    void (*change)(at::Tensor& x, at::Tensor& dy);
  };
  const auto data = GENERATE(values<Data>({
      {"gaussian", 0.012, [](at::Tensor&, at::Tensor&) {}},
      {"token 0 has channel 5 at 1000", 0.032, [](at::Tensor& x, at::Tensor&) { x[0][5] = 1000; }},
      {"every 16th token has channel 5 at 300", 0.012,
       [](at::Tensor& x, at::Tensor&) { x.select(1, 5).slice(0, 0, {}, 16).fill_(300); }},
      {"channel 5 is x60 everywhere", 0.012, [](at::Tensor& x, at::Tensor&) { x.select(1, 5).mul_(60); }},
      {"token norms of x log-normal, sigma 1", 0.036,
       [](at::Tensor& x, at::Tensor&) { x.mul_(at::randn({x.size(0), 1}, at::kCPU).exp_()); }},
      {"token norms of dy log-normal, sigma 1.5", 0.074,
       [](at::Tensor&, at::Tensor& dy) { dy.mul_(at::randn({dy.size(0), 1}, at::kCPU).mul_(1.5).exp_()); }},
  }));
  // A heavy tail's largest token sets the error of the last two, 30 % more or less from draw to draw, and the design's
  // figures are of one draw: within 20 % of what some draws span.
  std::vector<double> errors;
  for (int draw = 0; draw < 7; ++draw) {
    torch::manual_seed(45 + draw);
    // Drawn on the host, so that every device has the same tails.
    auto x = at::randn({rows, width}, at::kCPU), dy = at::randn({rows, width}, at::kCPU).mul_(1e-4);
    data.change(x, dy);
    x = x.to(test_device());
    dy = dy.to(test_device());
    const auto weight = at::randn({width, width}).mul_(0.02).requires_grad_();
    int8_linear(x, weight, {}, {.int8_grad_weight = true}).backward(dy);
    const auto [codes, scales] = ops::quantize_rows(x);
    const auto truth = dy.t().matmul(codes.to(at::kFloat) * scales.unsqueeze(1));
    errors.push_back(relative_error(weight.grad(), truth));
  }
  const auto [least, most] = std::ranges::minmax(errors);
  INFO(data.name << ": relative errors " << least << " to " << most << ", the design says " << data.expected);
  CHECK(data.expected > 0.8 * least);
  CHECK(data.expected < 1.2 * most);
  CHECK(most < 1.7 * least);
}
