// Convolutions in a scope: every option of LibTorch's modules, their bits, their gradients, and calls at the edge.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// A convolution as a typed member.
template <typename Conv>
struct HasConvImpl : nn::Module {
  explicit HasConvImpl(Conv layer) : conv(register_module("conv", std::move(layer))) {}
  Tensor forward(const Tensor& x) { return conv(x); }
  Conv conv;
};

struct ConvolutionOption {
  std::string name;
  std::function<std::shared_ptr<nn::Module>()> make;
  std::function<Tensor(nn::Module&, const Tensor&)> run;  ///< the module's own forward
  std::vector<int64_t> x;
};

template <typename Conv, typename Options>
ConvolutionOption option(const std::string& name, const Options& options, std::vector<int64_t> x) {
  using Holder = HasConvImpl<Conv>;
  return {
      name, [options] { return std::make_shared<Holder>(Conv(options)); },
      [](nn::Module& m, const Tensor& input) { return dynamic_cast<Holder&>(m).forward(input); }, std::move(x)};
}

std::vector<ConvolutionOption> convolution_options() {
  const auto one = [](auto f) { return f(nn::Conv1dOptions(6, 9, 3)); };
  const auto two = [](auto f) { return f(nn::Conv2dOptions(6, 10, 3)); };
  const auto three = [](auto f) { return f(nn::Conv3dOptions(2, 8, 2)); };
  const auto plain = [](auto o) { return o; };
  const std::vector<int64_t> x1{3, 6, 11}, x2{2, 6, 9, 8}, x3{2, 2, 4, 5, 6};
  return {
      option<nn::Conv1d>("1", one(plain), x1),
      option<nn::Conv1d>("1 same, even window", nn::Conv1dOptions(6, 9, 4).padding(torch::kSame), x1),
      option<nn::Conv1d>("1 circular, strided", one([](auto o) { return o.stride(2).padding(2).padding_mode(torch::kCircular); }), x1),
      option<nn::Conv1d>("1 unbatched", one(plain), {6, 11}),
      option<nn::Conv2d>("2", two(plain), x2),
      option<nn::Conv2d>("2 no bias", two([](auto o) { return o.bias(false); }), x2),
      option<nn::Conv2d>("2 stride, padding, dilation", two([](auto o) { return o.stride({2, 1}).padding({0, 3}).dilation({1, 2}); }), x2),
      option<nn::Conv2d>("2 groups", two([](auto o) { return o.groups(2); }), x2),
      option<nn::Conv2d>("2 depthwise", nn::Conv2dOptions(6, 12, 3).groups(6).padding(1), x2),
      option<nn::Conv2d>("2 same, dilated", two([](auto o) { return o.padding(torch::kSame).dilation(2); }), x2),
      option<nn::Conv2d>("2 same, even window", nn::Conv2dOptions(6, 10, {2, 4}).padding(torch::kSame), x2),
      option<nn::Conv2d>("2 valid", two([](auto o) { return o.padding(torch::kValid); }), x2),
      option<nn::Conv2d>("2 reflected", two([](auto o) { return o.padding(1).padding_mode(torch::kReflect); }), x2),
      option<nn::Conv2d>("2 replicated", two([](auto o) { return o.padding(2).padding_mode(torch::kReplicate); }), x2),
      option<nn::Conv2d>("2 of single pixels", nn::Conv2dOptions(6, 40, 1), x2),
      option<nn::Conv2d>("2 unbatched", two(plain), {6, 9, 8}),
      option<nn::Conv2d>("2 no samples", two(plain), {0, 6, 9, 8}),
      option<nn::Conv3d>("3", three(plain), x3),
      option<nn::Conv3d>(
          "3 stride, padding, dilation", three([](auto o) { return o.stride({1, 2, 1}).padding(1).dilation({2, 1, 1}); }), x3),
      option<nn::Conv3d>("3 groups", three([](auto o) { return o.groups(2); }), x3),
  };
}

Tensor by_sample(const Tensor& x) { return x.reshape({x.size(0), x.numel() / std::max<int64_t>(x.size(0), 1)}); }

/// What the key of a convolution's call is given: its input padded as the module pads it, and the rest.
struct CaughtCall {
  Tensor x;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups = 1;
};

template <std::size_t D, typename Module>
CaughtCall caught(Module& m, const Tensor& input) {
  const auto& o = m.options;
  const bool zeros = std::holds_alternative<torch::enumtype::kZeros>(o.padding_mode());
  CaughtCall call{
      input.dim() == static_cast<int64_t>(D) + 1 ? input.unsqueeze(0) : input,
      {o.stride()->begin(), o.stride()->end()},
      std::vector<int64_t>(D, 0),
      {o.dilation()->begin(), o.dilation()->end()},
      o.groups()};
  std::vector<int64_t> around;  // the last dimension first
  for (std::size_t i = D; i-- > 0;) {
    const auto span = (*o.dilation())[i] * (m.weight.size(static_cast<int64_t>(i) + 2) - 1);
    if (std::holds_alternative<torch::enumtype::kSame>(o.padding())) {
      around.insert(around.end(), {span / 2, span - span / 2});
    } else if (const auto* given = std::get_if<torch::ExpandingArray<D>>(&o.padding())) {
      around.insert(around.end(), {(**given)[i], (**given)[i]});
    } else {
      around.insert(around.end(), {0, 0});
    }
  }
  const std::string mode = zeros ? "constant"
                           : std::holds_alternative<torch::enumtype::kReflect>(o.padding_mode()) ? "reflect"
                           : std::holds_alternative<torch::enumtype::kReplicate>(o.padding_mode()) ? "replicate" : "circular";
  call.x = at::pad(call.x, around, mode);
  return call;
}

CaughtCall caught_call(nn::Module& model, const Tensor& x) {
  auto& child = *model.children().front();
  if (auto* one = child.as<nn::Conv1d>()) return caught<1>(*one, x);
  if (auto* two = child.as<nn::Conv2d>()) return caught<2>(*two, x);
  return caught<3>(*child.as<nn::Conv3d>(), x);
}

/// From the operations alone: codes by sample and by output channel.
Tensor int8_convolution(const CaughtCall& call, const Tensor& weight, const Tensor& bias, at::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  const auto [x_codes, x_scales] = te_int8::ops::quantize_rows(by_sample(call.x.detach()));
  const auto [w_codes, w_scales] = te_int8::ops::quantize_rows(by_sample(weight.detach()));
  const auto added = bias.defined() ? std::optional(bias.detach()) : std::nullopt;
  return te_int8::ops::scaled_convolution(
      x_codes.view(call.x.sizes()), w_codes.view(weight.sizes()), x_scales, w_scales, added, call.stride, call.padding,
      call.dilation, call.groups, dtype);
}

Tensor parameter_of(nn::Module& model, const std::string& name) {
  const auto parameters = model.named_parameters();
  const auto* found = parameters.find(name);
  return found == nullptr ? Tensor() : *found;
}

}  // namespace

TEST_CASE("convolutions with every option give the operations' bits", "[guard][convolution]") {
  const auto o = GENERATE(from_range(convolution_options()));
  const auto context = GENERATE("grad", "no grad", "inference", "autocast");
  const bool last = GENERATE(false, true);
  if (last && o.x.size() != 4) return;
  CAPTURE(o.name, context, last);
  const auto model = o.make();
  const Snapshot before(*model);
  const auto bytes = saved_bytes(model);
  auto x = torch::randn(o.x);
  if (last) x = x.contiguous(at::MemoryFormat::ChannelsLast);
  const auto plain = o.run(*model, x);
  const auto weight = parameter_of(*model, "conv.weight"), bias = parameter_of(*model, "conv.bias");
  in_context(context, [&] {
    const auto dtype = context == std::string("autocast") ? torch::kBFloat16 : torch::kFloat;
    auto expected = int8_convolution(caught_call(*model, x), weight, bias, dtype);
    if (plain.dim() < expected.dim()) expected = expected.squeeze(0);
    for (const auto mode : {Mode::QAT, Mode::Inference}) {
      const torch::AutoGradMode grad(mode == Mode::QAT && at::GradMode::is_enabled());
      const AutocastGuard guard(model, mode);
      const auto y = o.run(*model, x);
      CHECK(same(y.detach(), expected));
      CHECK(y.scalar_type() == dtype);
      CHECK(y.sizes() == plain.sizes());
      if (context != std::string("autocast") && y.numel() > 0) CHECK(y.suggest_memory_format() == plain.suggest_memory_format());
      const auto line = line_of(guard.report(), "conv");
      CHECK(line.calls == 1);
      CHECK(line.bias_fused == bias.defined());
      CHECK(guard.report().layers.size() == 1);
      CHECK(printed(*model).find("te_int8::QuantizedConv") != std::string::npos);
      CHECK(saved_bytes(model) == bytes);
      CHECK(before.holds_parameters(*model));
    }
  });
  CHECK(before.holds(*model));
  CHECK(same(o.run(*model, x).detach(), plain.detach()));
}

TEST_CASE("gradients of convolutions are those of fake quantization", "[guard][convolution]") {
  const auto o = GENERATE(from_range(convolution_options()));
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16, torch::kDouble);
  CAPTURE(o.name, dtype);
  at::globalContext().setAllowTF32CuDNN(false);
  const auto model = o.make();
  model->to(dtype);
  const auto x = torch::randn(o.x).to(dtype).set_requires_grad(true);
  const auto weight = parameter_of(*model, "conv.weight"), bias = parameter_of(*model, "conv.bias");
  const auto fake = [](const Tensor& t) {
    const auto values = dequantized(by_sample(t)).view(t.sizes()).to(torch::kDouble);
    return values + (t - t.detach()).to(torch::kDouble);
  };
  const auto call = caught_call(*model, x);
  auto truth = at::convolution(
      fake(call.x), fake(weight), bias.defined() ? std::optional(bias.to(torch::kDouble)) : std::nullopt, call.stride, call.padding,
      call.dilation, false, std::vector<int64_t>(call.stride.size(), 0), call.groups);
  std::vector<Tensor> leaves{x, weight};
  if (bias.defined()) leaves.push_back(bias);
  if (truth.dim() > x.dim()) truth = truth.squeeze(0);
  const auto dy = torch::randn(truth.sizes());
  const auto expected = torch::autograd::grad({truth}, leaves, {dy.to(torch::kDouble)}, true);
  Tensor y;
  {
    const AutocastGuard guard(model, Mode::QAT);
    y = o.run(*model, x);
  }
  const auto got = torch::autograd::grad({y}, leaves, {dy.to(dtype)});
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i].scalar_type() == dtype);
    CHECK(got[i].is_contiguous(leaves[i].suggest_memory_format()));
    if (x.numel() == 0) {
      CHECK(got[i].count_nonzero().item<int64_t>() == 0);
    } else {
      CHECK(relative_error(got[i], expected[i]) < (dtype == torch::kBFloat16 ? 1e-2 : 1e-5));
    }
  }
}

TEST_CASE("one scale for a whole activation or weight", "[guard][convolution]") {
  const auto model = std::make_shared<HasConvImpl<nn::Conv2d>>(nn::Conv2d(nn::Conv2dOptions(4, 8, 3)));
  const auto x = torch::randn({2, 4, 9, 9}) * torch::tensor({1.0, 5.0}).to(test_device()).view({2, 1, 1, 1});
  const torch::NoGradGuard no_grad;
  const auto tensor = te_int8::Granularity::per_tensor();
  const AutocastGuard guard(model, Mode::Inference, Recipe().activations(tensor).weights(tensor));
  const auto [x_codes, x_scale] = te_int8::ops::quantize_rows(x, "tensor");
  const auto [w_codes, w_scale] = te_int8::ops::quantize_rows(model->conv->weight, "tensor");
  const auto expected = te_int8::ops::scaled_convolution(
      x_codes, w_codes, x_scale, w_scale, model->conv->bias, {1, 1}, {0, 0}, {1, 1});
  CHECK(same(model->forward(x), expected));
}

TEST_CASE("calls that LibTorch refuses get LibTorch's error", "[guard][convolution]") {
  const auto model = std::make_shared<HasConvImpl<nn::Conv2d>>(nn::Conv2d(nn::Conv2dOptions(4, 8, 3)));
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(error_of([&] { model->forward(torch::randn({2, 5, 9, 9})); }).find("te_int8") == std::string::npos);
  CHECK(error_of([&] { model->forward(torch::randn({2, 4, 2, 2})); }).find("Kernel size") != std::string::npos);
  CHECK_FALSE(error_of([&] { model->forward(torch::randn({2, 4, 0, 9})); }).empty());
  CHECK(calls_of(guard, "conv") == 0);
  auto y = model->forward(torch::randn({2, 4, 9, 9}).set_requires_grad(true));
  const auto dx = torch::autograd::grad({y.pow(2).sum()}, {model->conv->weight}, {}, true, true)[0];
  CHECK(error_of([&] { dx.sum().backward(); }).find("te_int8::convolution: expected a first-order backward") != std::string::npos);
}

TEST_CASE("an operation that autocast leaves alone keeps its dtype", "[guard][convolution]") {
  const auto model = std::make_shared<HasConvImpl<nn::Conv2d>>(nn::Conv2d(nn::Conv2dOptions(4, 8, 3)));
  const auto x = torch::randn({2, 4, 9, 9});
  const Bf16Autocast autocast;
  const auto direct = [&] {
    return at::convolution(x, model->conv->weight, model->conv->bias, {1, 1}, {0, 0}, {1, 1}, false, {0, 0}, 1);
  };
  const auto plain = direct();
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(direct().scalar_type() == plain.scalar_type());
  CHECK(model->forward(x).scalar_type() == torch::kBFloat16);
  CHECK(calls_of(guard, "conv") == 2);
}

TEST_CASE("windows whose sums may not fit an int32 are told of", "[guard][convolution]") {
  const auto model = std::make_shared<HasConvImpl<nn::Conv1d>>(nn::Conv1d(nn::Conv1dOptions(131'072, 1, 1)));
  const AutocastGuard guard(model, Mode::QAT);
  model->forward(torch::randn({1, 131'072, 2}));
  CHECK(line_of(guard.report(), "conv").reason.find("windows of more than 131,071 values are computed by the reference") == 0);
}

TEST_CASE("a layer that was given no weight, or one of another shape, is in the report", "[guard][convolution]") {
  const auto model = std::make_shared<HasConvImpl<nn::Conv2d>>(nn::Conv2d(nn::Conv2dOptions(4, 8, 3)));
  const AutocastGuard guard(model, Mode::QAT);
  model->conv->weight = GENERATE(false, true) ? Tensor() : torch::randn({8, 4});
  CHECK(line_of(guard.report(), "conv").action == "full precision");
  CHECK(line_of(guard.report(), "conv").reason == "its weight has not 3 to 5 dimensions");
}
