// Batch norms that convolutions compute: Recipe::fold_batch_norms and fold_batch_norm.
#include <optional>
#include <thread>

#include "guard_support.h"

using Catch::Matchers::ContainsSubstring;
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

/// What a report says of a convolution's norm, after what it may say of its windows.
std::string remark_of(const te_int8::Report& report, const std::string& name) {
  const auto reason = line_of(report, name).reason;
  const auto last = reason.rfind("; ");
  return last == std::string::npos ? reason : reason.substr(last + 2);
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
  CHECK(remark_of(report, "0") == "'1' is folded into it");
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
  const auto agrees = [&] { return differs_by_roundings(model->forward(x), inferred(model, x, {}), 0x1p-20); };
  const auto before = model->forward(x);
  model->norm->running_mean.add_(1);
  model->norm->weight.mul_(-2);
  CHECK_FALSE(differs_by_roundings(model->forward(x), before, 0x1p-10));
  CHECK(agrees());
  model->norm->bias.data().add_(1);  // no version tells
  CHECK(agrees());
  model->train();
  for (int i = 0; i < 3; ++i) model->forward(x);  // nor of these statistics
  model->eval();
  CHECK(agrees());
  model->to(at::kDouble);
  model->to(at::kFloat);
  CHECK(agrees());
}

TEST_CASE("a folded norm hands on views of results, as often as it is called, in any thread", "[guard][convolution][batch_norm]") {
  const torch::NoGradGuard no_grad;
  ConvThenNorm model;
  model->to(test_device());
  const auto x = torch::randn({2, 5, 8, 8}, test_device());
  te_int8::AutocastGuard guard(model, te_int8::Mode::Inference, named);
  const auto y = model->conv(x);
  CHECK(same(model->norm(y), y));
  CHECK(same(model->norm(y.detach()), y));
  const auto z = model->conv(x);
  Tensor of_thread;
  std::thread([&] {
    const auto attached = guard.attach();
    const torch::NoGradGuard no_grad_there;
    of_thread = model->norm(z);
  }).join();
  CHECK(same(of_thread, z));
  CHECK(remark_of(guard.report(), "conv") == "'norm' is folded into it");
  // What is no result is normalized, while none is missing.
  const auto by_channel = [](const Tensor& t) { return t.view({1, -1, 1, 1}); };
  const auto& norm = *model->norm;
  const auto factor = at::rsqrt(norm.running_var + norm.options.eps()) * norm.weight;
  CHECK(at::allclose(model->norm(y + 0), (y - by_channel(norm.running_mean)) * by_channel(factor) + by_channel(norm.bias), 1e-4, 1e-4));
}

TEST_CASE("results of a folded convolution that go elsewhere are noticed", "[guard][convolution][batch_norm]") {
  const torch::NoGradGuard no_grad;
  ConvThenNorm model;
  model->to(test_device());
  const auto x = torch::randn({2, 5, 8, 8}, test_device());
  Warnings warnings;
  std::optional<te_int8::AutocastGuard> guard;
  guard.emplace(model, te_int8::Mode::Inference, named);
  const auto error = error_of([&] { model->norm(model->conv(x) + 0); });
  CHECK(error.find("expected 'norm', which is folded into 'conv', to read the convolution's results") != std::string::npos);
  CHECK(error.find("got another tensor while it has not read 1 of 1 results") != std::string::npos);
  model->forward(x);
  CHECK(remark_of(guard->report(), "conv") == "'norm' is folded into it, but has not read 1 of 2 results");
  const auto y = model->conv(x);
  model->norm->train();
  CHECK_THAT(
      error_of([&] { model->norm(y); }),
      ContainsSubstring("to be in evaluation mode as at the convolution's call, got training mode"));
  CHECK(warnings.messages.empty());
  guard.reset();
  REQUIRE(warnings.messages.size() == 1);
  CHECK(warnings.messages[0].find("of 'conv' 'norm' is folded into it, but has not read 2 of 3 results") != std::string::npos);
}

TEST_CASE("modules with a forward of their own are not folded unless they are named", "[guard][convolution][batch_norm]") {
  struct OwnNormImpl : nn::BatchNorm2dImpl {
    using nn::BatchNorm2dImpl::BatchNorm2dImpl;
    Tensor forward(const Tensor& x) { return nn::BatchNorm2dImpl::forward(x) * 2; }
  };
  const auto norm = std::make_shared<OwnNormImpl>(12);
  norm->eval();
  nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(5, 12, 3)), norm);
  model->to(test_device());
  const auto x = torch::randn({2, 5, 8, 8}, test_device());
  const auto plain = inferred(model, x, {});
  te_int8::Report report;
  CHECK(same(inferred(model, x, te_int8::Recipe().fold_batch_norms(true), &report), plain));
  CHECK(line_of(report, "1").reason == "norms stay in full precision");
  CHECK(differs_by_roundings(inferred(model, x, te_int8::Recipe().fold_batch_norm("0", "1")), plain, 0x1p-20));
}

TEST_CASE("pairs that cannot be folded are errors where they were named", "[guard][convolution][batch_norm]") {
  ConvThenNorm model;
  const auto mode = GENERATE(te_int8::Mode::QAT, te_int8::Mode::Inference);
  const auto error = [&](const std::string& convolution, const std::string& norm) {
    return error_of([&] {
      const te_int8::AutocastGuard guard(model, mode, te_int8::Recipe().fold_batch_norm(convolution, norm));
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
  auto twice = te_int8::Recipe().fold_batch_norm("conv", "norm").fold_batch_norm("conv", "norm");
  if (mode == te_int8::Mode::Inference) {
    CHECK(error_of([&] { const te_int8::AutocastGuard guard(model, mode, twice); }).find("a norm of its own") != std::string::npos);
  }
  CHECK_THAT(
      error_of([] { te_int8::Recipe().rule("**", named); }),
      ContainsSubstring("expected folding of batch norms, which is a scope's"));
}
