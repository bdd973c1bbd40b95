// MultiheadAttention and LibTorch's transformer layers, with every option that LibTorch's own forward accepts.
#include "guard_support.h"

using namespace te_int8_test;
namespace F = torch::nn::functional;

namespace {

constexpr int64_t kWidth = 16, kHeads = 2, kBatch = 3;

struct Inputs {
  Tensor query, key, value, padding, mask;
};

/// Attention with its three projections and its output by `linear` (of x, weight, bias), the rest by LibTorch: a product
/// with the identity changes no bit.
template <typename Linear>
Tensor attention(nn::MultiheadAttentionImpl& m, const Inputs& in, const Linear& linear) {
  const auto weight = [&](int64_t i, const Tensor& own) {
    return m.in_proj_weight.defined() ? m.in_proj_weight.narrow(0, i * kWidth, kWidth) : own;
  };
  const auto bias = [&](int64_t i) {
    return m.in_proj_bias.defined() ? m.in_proj_bias.narrow(0, i * kWidth, kWidth) : Tensor();
  };
  const auto q = linear(in.query, weight(0, m.q_proj_weight), bias(0));
  const auto k = linear(in.key, weight(1, m.k_proj_weight), bias(1));
  const auto v = linear(in.value, weight(2, m.v_proj_weight), bias(2));
  const auto identity = torch::eye(kWidth);
  const c10::impl::ExcludeDispatchKeyGuard own_devices(kTestKey);  // LibTorch's repeat() fails below it on CUDA
  const auto mixed = std::get<0>(F::multi_head_attention_forward(
      q, k, v,
      F::MultiheadAttentionForwardFuncOptions(
          kWidth, kHeads, {}, {}, m.bias_k, m.bias_v, m.options.add_zero_attn(), 0.0, identity, {})
          .key_padding_mask(in.padding)
          .need_weights(false)
          .attn_mask(in.mask)
          .use_separate_proj_weight(true)
          .q_proj_weight(identity)
          .k_proj_weight(identity)
          .v_proj_weight(identity)));
  return linear(mixed, m.out_proj->weight, m.out_proj->bias);
}

Tensor call(nn::MultiheadAttention& m, const Inputs& in, bool need_weights = true) {
  const c10::impl::ExcludeDispatchKeyGuard own_devices(kTestKey);
  return std::get<0>(m(in.query, in.key, in.value, in.padding, need_weights, in.mask));
}

/// Options of an attention, and how its three inputs come about.
struct Options {
  std::string name;
  nn::MultiheadAttentionOptions options = nn::MultiheadAttentionOptions(kWidth, kHeads);
  bool self = false, masked = false;
};

std::vector<Options> all_options() {
  const auto plain = [] { return nn::MultiheadAttentionOptions(kWidth, kHeads); };
  std::vector<Options> all;
  for (const bool self : {true, false}) {
    for (const bool masked : {true, false}) {
      const auto suffix = c10::str(self ? ", of itself" : "", masked ? ", masked" : "");
      all.push_back({c10::str("plain", suffix), plain(), self, masked});
      all.push_back({c10::str("no bias", suffix), plain().bias(false), self, masked});
      all.push_back({c10::str("bias of key and value", suffix), plain().add_bias_kv(true), self, masked});
      all.push_back({c10::str("zero attention", suffix), plain().add_zero_attn(true), self, masked});
      all.push_back({c10::str("both", suffix), plain().add_bias_kv(true).add_zero_attn(true), self, masked});
    }
  }
  all.push_back({"keys of a width of their own", plain().kdim(24).vdim(24), false, false});
  all.push_back({"the same, masked", plain().kdim(24).vdim(24), false, true});
  all.push_back({"the same without bias", plain().kdim(24).vdim(24).bias(false), false, false});
  all.push_back({"the same with biases of key and value", plain().kdim(24).vdim(24).add_bias_kv(true), false, true});
  return all;
}

Inputs inputs_for(const Options& o) {
  const auto query = torch::randn({5, kBatch, kWidth});
  const auto steps = o.self ? 5 : 7;
  Inputs in{query, query, query, {}, {}};
  if (!o.self) {
    in.key = torch::randn({steps, kBatch, o.options.kdim()});
    in.value = torch::randn({steps, kBatch, o.options.vdim()});
  }
  if (o.masked) {
    in.padding = torch::zeros({kBatch, steps}, torch::kBool);
    in.padding[1][steps - 1] = true;
    in.mask = torch::full({5, steps}, -1e4).triu(1);
  }
  return in;
}

nn::MultiheadAttention attention_with(const Options& o) {
  nn::MultiheadAttention model(o.options);
  if (model->in_proj_bias.defined()) nn::init::uniform_(model->in_proj_bias);
  return model;
}

}  // namespace

TEST_CASE("attention with every option gives the operations' bits", "[guard][attention]") {
  const auto option = GENERATE(from_range(all_options()));
  const auto mode = GENERATE(Mode::QAT, Mode::Inference);
  CAPTURE(option.name, mode);
  auto model = attention_with(option);
  const Snapshot before(*model);
  const auto in = inputs_for(option);
  const torch::NoGradGuard no_grad;
  const auto plain = call(model, in);
  const auto expected = attention(*model, in, [](const Tensor& x, const Tensor& w, const Tensor& b) {
    return int8_result(x.contiguous(), w, b, torch::kFloat);
  });
  {
    const AutocastGuard guard(model, mode);
    CHECK(same(call(model, in), expected));
    CHECK(same(call(model, in, /*need_weights=*/false), expected));
    const bool separate = !model->in_proj_weight.defined();
    if (separate) {
      for (const auto* name : {"q_proj", "k_proj", "v_proj"}) {
        const auto line = line_of(guard.report(), name);
        CHECK(line.calls == 2);
        CHECK(line.bias_fused == option.options.bias());
      }
    } else {
      CHECK(calls_of(guard, "in_proj") == (option.self ? 2 : 6));
      CHECK(line_of(guard.report(), "in_proj").bias_fused == option.options.bias());
    }
    CHECK(calls_of(guard, "out_proj") == 2);
    for (const auto& line : guard.report().layers) {
      const bool added = line.name == "bias_k" || line.name == "bias_v";
      CHECK(line.action == (added ? "full precision" : "quantized"));
    }
  }
  CHECK(before.holds(*model));
  CHECK(same(call(model, in), plain));
}

TEST_CASE("gradients of attention are those of fake quantization", "[guard][attention]") {
  const auto option = GENERATE(from_range(all_options()));
  CAPTURE(option.name);
  torch::manual_seed(11);
  auto model = attention_with(option);
  auto in = inputs_for(option);
  auto leaves = model->parameters();
  in.query.set_requires_grad(true);
  leaves.push_back(in.query);
  if (!option.self) {
    for (auto* input : {&in.key, &in.value}) leaves.push_back(input->set_requires_grad(true));
  }
  const auto truth = attention(*model, in, fake_quantized_linear);
  const auto expected = torch::autograd::grad({truth.sin().sum()}, leaves);
  Tensor loss;
  {
    const AutocastGuard guard(model, Mode::QAT);
    loss = call(model, in).sin().sum();
  }
  const auto got = torch::autograd::grad({loss}, leaves);
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    CAPTURE(i);
    CHECK(relative_error(got[i], expected[i]) < 1e-5);
  }
}

TEST_CASE("globs and rules reach an attention's projections", "[guard][attention]") {
  const auto in = inputs_for({});
  nn::MultiheadAttention model(kWidth, kHeads);
  const AutocastGuard guard(
      model, Mode::QAT, Recipe().exclude({"out_proj"}).rule("in_proj", Recipe().weights(te_int8::Granularity::per_tensor())));
  call(model, in);
  CHECK(calls_of(guard, "in_proj") == 3);
  CHECK(line_of(guard.report(), "out_proj").reason == "excluded");
}

TEST_CASE("LibTorch's transformer layers with each activation give what the reference gives", "[guard][attention]") {
  const auto activation = GENERATE(0, 1, 2);
  const bool decoder = GENERATE(false, true);
  CAPTURE(activation, decoder);
  using Activation = nn::activation_t;
  const auto chosen = activation == 0   ? Activation(torch::kReLU)
                      : activation == 1 ? Activation(torch::kGELU)
                                        : Activation([](const Tensor& x) { return x.sigmoid() * x; });
  const auto x = torch::randn({5, kBatch, kWidth}), memory = torch::randn({7, kBatch, kWidth});
  nn::TransformerEncoderLayer encoder(
      nn::TransformerEncoderLayerOptions(kWidth, kHeads).dim_feedforward(24).dropout(0).activation(chosen));
  nn::TransformerDecoderLayer decoder_layer(
      nn::TransformerDecoderLayerOptions(kWidth, kHeads).dim_feedforward(24).dropout(0).activation(chosen));
  const auto run = [&](const std::string& backend) {
    auto& model = decoder ? static_cast<nn::Module&>(*decoder_layer) : *encoder;
    const AutocastGuard guard(model, Mode::QAT, Recipe().backend(backend));
    const auto y = decoder ? decoder_layer(x, memory) : encoder(x);
    CHECK(all_calls(guard) == (decoder ? 7 : 4));
    y.sin().sum().backward();
    std::vector<Tensor> all{y.detach()};
    for (const auto& parameter : model.parameters()) all.push_back(parameter.grad().clone());
    model.zero_grad();
    return all;
  };
  const auto got = run("auto"), expected = run("reference");
  // A GPU's epilogue rounds once less, and may so push a hidden value to the next code.
  const double tolerance = test_device().is_cuda() ? 1e-2 : 1e-5;
  if (!test_device().is_cuda()) CHECK(same(got[0], expected[0]));
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(relative_error(got[i], expected[i]) < tolerance);
}
