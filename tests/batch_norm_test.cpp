// Batch norms that convolutions compute: Recipe::fold_batch_norms and fold_batch_norm.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// A norm whose factors and shifts are all of different sizes and signs.
template <typename Norm>
Norm trained(Norm norm) {
  const torch::NoGradGuard no_grad;
  const auto channels = norm->options.num_features();
  norm->running_mean.copy_(torch::randn({channels}));
  norm->running_var.copy_(torch::rand({channels}) * 3 + 0.05);
  norm->weight.copy_(torch::randn({channels}));
  norm->bias.copy_(torch::randn({channels}));
  norm->eval();
  return norm;
}

/// conv and norm as typed members, as in a residual block.
struct ConvThenNormImpl : nn::Module {
  ConvThenNormImpl() {
    register_module("conv", conv);
    register_module("norm", norm);
    register_module("other", other);
  }
  Tensor forward(const Tensor& x) { return norm(conv(x)); }
  nn::Conv2d conv{nn::Conv2dOptions(5, 12, 3).bias(false)};
  nn::BatchNorm2d norm = trained(nn::BatchNorm2d(12));
  nn::BatchNorm2d other = trained(nn::BatchNorm2d(12));
};
TORCH_MODULE(ConvThenNorm);

const auto named = te_int8::Recipe().fold_batch_norm("conv", "norm");

template <typename Module>
Tensor inferred(Module& model, const Tensor& x, const te_int8::Recipe& recipe, te_int8::Report* report = nullptr) {
  const torch::NoGradGuard no_grad;
  const te_int8::AutocastGuard guard(model, te_int8::Mode::Inference, recipe);
  const auto y = model->forward(x);
  if (report != nullptr) *report = guard.report();
  return y;
}

/// What `y` may differ from the same computed in two steps, in units of the parts that are added up.
bool differs_by_roundings(const Tensor& y, const Tensor& two_steps, double unit) {
  const auto parts = two_steps.abs().max().to(at::kDouble) + 1;  // the parts are about as large as the largest result
  return ((y.to(at::kDouble) - two_steps.to(at::kDouble)).abs() <= unit * parts).all().item<bool>();
}

template <typename Conv, typename Norm>
void check_sequence(Conv conv, Norm norm, const std::vector<int64_t>& sizes) {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const auto granularity = GENERATE(te_int8::Granularity::per_row(), te_int8::Granularity::per_tensor());
  CAPTURE(sizes, dtype);
  nn::Sequential model(std::move(conv), trained(std::move(norm)), nn::ReLU());
  model->to(test_device(), dtype);
  model->eval();
  const auto x = torch::randn(sizes, test_device()).to(dtype);
  const auto recipe = te_int8::Recipe().activations(granularity).weights(granularity);
  const auto two_steps = inferred(model, x, recipe);
  te_int8::Report report;
  const auto folded = inferred(model, x, te_int8::Recipe(recipe).fold_batch_norms(true), &report);
  CHECK(folded.scalar_type() == dtype);
  CHECK(differs_by_roundings(folded, two_steps, dtype == at::kFloat ? 0x1p-20 : 0x1p-7));
  CHECK_FALSE(same(folded, two_steps));  // or nothing was folded
  CHECK(line_of(report, "0").calls == 1);
  CHECK(line_of(report, "0").reason == "'1' is folded into it");
  CHECK(line_of(report, "1").reason == "folded into '0'");
}

}  // namespace

TEST_CASE("a batch norm that follows in a Sequential is folded where the recipe says so", "[guard][convolution][batch_norm]") {
  SECTION("1") { check_sequence(nn::Conv1d(nn::Conv1dOptions(6, 9, 3)), nn::BatchNorm1d(9), {3, 6, 11}); }
  SECTION("2") { check_sequence(nn::Conv2d(nn::Conv2dOptions(16, 24, 3).padding(1)), nn::BatchNorm2d(24), {2, 16, 9, 8}); }
  SECTION("2 depthwise") { check_sequence(nn::Conv2d(nn::Conv2dOptions(6, 6, 3).groups(6)), nn::BatchNorm2d(6), {2, 6, 9, 8}); }
  SECTION("3") { check_sequence(nn::Conv3d(nn::Conv3dOptions(2, 8, 2).bias(false)), nn::BatchNorm3d(8), {2, 2, 4, 5, 6}); }
}

TEST_CASE("folding is off by default, in Mode::QAT and for a norm in training mode", "[guard][convolution][batch_norm]") {
  ConvThenNorm model;
  model->to(test_device());
  const auto x = torch::randn({2, 5, 8, 8}, test_device());
  const auto plain = inferred(model, x, {});
  CHECK(same(inferred(model, x, te_int8::Recipe().fold_batch_norms(true)), plain));  // not in a Sequential
  te_int8::Report report;
  CHECK_FALSE(same(inferred(model, x, named, &report), plain));
  CHECK(line_of(report, "norm").reason == "folded into 'conv'");
  CHECK(line_of(report, "other").reason == "norms stay in full precision");
  {
    const te_int8::AutocastGuard guard(model, te_int8::Mode::QAT, named);
    CHECK(same(model->forward(x), plain));
  }
  model->norm->train();
  const auto mean = model->norm->running_mean.clone();
  inferred(model, x, named, &report);
  CHECK_FALSE(same(model->norm->running_mean, mean));  // it was computed, with the statistics of the batch
  CHECK(line_of(report, "norm").reason == "norms stay in full precision");
}

TEST_CASE("changes of a folded norm are seen", "[guard][convolution][batch_norm]") {
  const torch::NoGradGuard no_grad;
  ConvThenNorm model;
  model->to(test_device());
  const auto x = torch::randn({2, 5, 8, 8}, test_device());
  const te_int8::AutocastGuard guard(model, te_int8::Mode::Inference, named);
  const auto before = model->forward(x);
  model->norm->running_mean.add_(1);
  model->norm->weight.mul_(-2);
  const auto after = model->forward(x);
  CHECK(differs_by_roundings(after, inferred(model, x, {}), 0x1p-20));
  model->norm->bias.data().add_(1);  // no version tells
  te_int8::refresh(*model);
  CHECK(differs_by_roundings(model->forward(x), after + 1, 0x1p-20));
  model->to(at::kDouble);
  model->to(at::kFloat);
  CHECK(differs_by_roundings(model->forward(x), after + 1, 0x1p-20));
}

TEST_CASE("results of a folded convolution that go elsewhere are noticed", "[guard][convolution][batch_norm]") {
  const torch::NoGradGuard no_grad;
  ConvThenNorm model;
  model->to(test_device());
  const auto x = torch::randn({2, 5, 8, 8}, test_device());
  const te_int8::AutocastGuard guard(model, te_int8::Mode::Inference, named);
  const auto error = error_of([&] { model->other(model->conv(x)); });
  CHECK(error.find("expected the results of 'conv' to go to 'norm', which is folded into it") != std::string::npos);
  CHECK(error.find("got another batch norm") != std::string::npos);
  model->forward(x);
  CHECK(line_of(guard.report(), "conv").reason == "'norm' is folded into it, but has not read 1 of 2 results");
}

TEST_CASE("pairs that cannot be folded are errors where they were named", "[guard][convolution][batch_norm]") {
  ConvThenNorm model;
  const auto error = [&](const std::string& convolution, const std::string& norm) {
    return error_of([&] {
      const te_int8::AutocastGuard guard(model, te_int8::Mode::Inference, te_int8::Recipe().fold_batch_norm(convolution, norm));
    });
  };
  const std::string expected = "expected a Conv1d to Conv3d and a BatchNorm of its output channels and dimensions, got ";
  CHECK(error("conv", "nom").find(expected + "\"conv\" and \"nom\"") != std::string::npos);
  CHECK(error("norm", "conv").find(expected) != std::string::npos);
  model->replace_module("other", nn::BatchNorm2d(13).ptr());
  CHECK(error("conv", "other").find(expected) != std::string::npos);
  model->replace_module("other", nn::BatchNorm1d(12).ptr());
  CHECK(error("conv", "other").find(expected) != std::string::npos);
  CHECK(error("conv", "norm").empty());
}
