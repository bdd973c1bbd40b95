// Which matmuls a scope catches, and that what it gives is exactly te_int8's operations.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

const std::vector<std::string> kContexts{"grad", "no grad", "inference", "autocast"};

nn::TransformerEncoder small_encoder() {
  return nn::TransformerEncoder(nn::TransformerEncoderOptions(
      nn::TransformerEncoderLayerOptions(16, 2).dim_feedforward(24).dropout(0.1), 2));
}

/// LibTorch's attention of 2 heads written out, with quantized projections. x [T,B,E].
Tensor attention_by_hand(const nn::MultiheadAttentionImpl& attention, const Tensor& q, const Tensor& kv, const Tensor& mask) {
  const torch::NoGradGuard no_grad;
  const auto steps = q.size(0), batch = q.size(1), width = q.size(2), depth = width / 2;
  const auto project = [&](const Tensor& x, int64_t first, int64_t count) {
    return int8_result(x, attention.in_proj_weight.narrow(0, first, count),
                       attention.in_proj_bias.narrow(0, first, count), at::kFloat);
  };
  const auto heads = [&](const Tensor& x) {
    return x.contiguous().view({-1, batch * 2, depth}).transpose(0, 1);
  };
  const auto queries = heads(project(q, 0, width) * std::pow(static_cast<double>(depth), -0.5));
  const auto keys_values = project(kv, width, 2 * width).chunk(2, -1);
  auto scores = torch::bmm(queries, heads(keys_values[0]).transpose(1, 2));
  if (mask.defined()) scores += mask.unsqueeze(0);
  const auto mixed = torch::bmm(torch::softmax(scores, -1), heads(keys_values[1]));
  return int8_result(mixed.transpose(0, 1).contiguous().view({steps, batch, width}),
                     attention.out_proj->weight, attention.out_proj->bias, at::kFloat);
}

}  // namespace

TEST_CASE("TransformerEncoder: 8 matmuls of 8 are caught", "[guard][routing]") {
  const auto context = GENERATE(from_range(kContexts));
  const bool training = GENERATE(true, false);
  CAPTURE(context, training);
  auto model = small_encoder();
  model->train(training);
  const auto x = torch::randn({5, 2, 16});
  in_context(context, [&] {
    const AutocastGuard guard(model, Mode::QAT);
    model(x);
    CHECK(all_calls(guard) == 8);
    for (const auto& line : guard.report().layers) {
      const bool norm = line.name.find("norm") != std::string::npos;
      CHECK((norm || (line.calls == 1 && line.bias_fused)));
    }
  });
  const AutocastGuard guard(model, Mode::QAT);
  in_context(context, [&] { model(x); });
  CHECK(all_calls(guard) == 8);
}

TEST_CASE("TransformerDecoder: 14 matmuls of 14 are caught", "[guard][routing]") {
  const auto context = GENERATE(from_range(kContexts));
  CAPTURE(context);
  nn::TransformerDecoder model(nn::TransformerDecoderOptions(
      nn::TransformerDecoderLayerOptions(16, 2).dim_feedforward(24), 2));
  const AutocastGuard guard(model, Mode::QAT);
  in_context(context, [&] { model(torch::randn({5, 2, 16}), torch::randn({7, 2, 16})); });
  CHECK(all_calls(guard) == 14);
  CHECK(calls_of(guard, "layers.0.self_attn.in_proj") == 1);
  CHECK(calls_of(guard, "layers.0.multihead_attn.in_proj") == 2);
}

TEST_CASE("MultiheadAttention equals attention by hand, bit for bit", "[guard][routing]") {
  nn::MultiheadAttention model(nn::MultiheadAttentionOptions(16, 2));
  torch::nn::init::uniform_(model->in_proj_bias);
  const auto x = torch::randn({5, 3, 16}), memory = torch::randn({7, 3, 16});
  const AutocastGuard guard(model, Mode::QAT);
  SECTION("itself, with a mask") {
    const auto mask = torch::full({5, 5}, -1e4).triu(1);
    const auto y = std::get<0>(model(x, x, x, Tensor(), true, mask));
    CHECK(same(y.detach(), attention_by_hand(*model, x, x, mask)));
    CHECK(calls_of(guard, "in_proj") == 1);
  }
  SECTION("another sequence") {
    const auto y = std::get<0>(model(x, memory, memory));
    CHECK(same(y.detach(), attention_by_hand(*model, x, memory, {})));
    CHECK(calls_of(guard, "in_proj") == 2);
    y.sum().backward();
    CHECK(model->in_proj_weight.grad().abs().amax(1).gt(0).slice(0, 32, 48).all().item<bool>());
  }
  SECTION("three sequences, padding masked") {
    const auto padding = torch::zeros({3, 7}, torch::kBool);
    padding[1][6] = true;
    model(x, memory, memory * 2, padding);
    CHECK(calls_of(guard, "in_proj") == 3);
  }
  SECTION("batch first") {
    const auto rows = torch::randn({3, 5, 16}), seen = rows.transpose(0, 1);
    const auto y = std::get<0>(model(seen, seen, seen));
    CHECK(same(y.detach(), attention_by_hand(*model, seen.contiguous(), seen.contiguous(), {})));
  }
  CHECK(calls_of(guard, "out_proj") == 1);
}

TEST_CASE("typed members give te_int8's operations bit for bit", "[guard][routing]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kHalf, at::kDouble);
  const auto shape = GENERATE(
      std::vector<int64_t>{16}, std::vector<int64_t>{3, 16}, std::vector<int64_t>{2, 3, 16},
      std::vector<int64_t>{2, 1, 3, 16}, std::vector<int64_t>{0, 16}, std::vector<int64_t>{2, 0, 16});
  CAPTURE(dtype, shape);
  Mlp model;
  model->to(dtype);
  const auto x = torch::randn(shape).to(dtype);
  const auto hidden = torch::relu(int8_result(*model->fc1, x));
  const auto expected = int8_result(*model->head, torch::relu(int8_result(*model->fc2, hidden)));
  const AutocastGuard guard(model, Mode::QAT);
  const auto y = model(x);
  CHECK(same(y.detach(), expected));
  CHECK(all_calls(guard) == 3);
  if (x.numel() == 0) {
    y.sum().backward();
    CHECK(model->fc1->weight.grad().count_nonzero().item<int64_t>() == 0);
  }
}

TEST_CASE("strided inputs give the bits of contiguous ones", "[guard][routing]") {
  OneLayer model;
  const auto x = GENERATE(
      torch::randn({3, 5, 8}).transpose(0, 1), torch::randn({8, 6}).t(), torch::randn({6, 16}).slice(1, 0, 16, 2),
      torch::randn({1, 8}).expand({4, 8}), torch::randn({4, 2, 1}).expand({4, 2, 8}), torch::randn({2, 8, 3}).permute({0, 2, 1}));
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(same(model(x).detach(), int8_result(*model->fc, x.contiguous())));
  CHECK(same(model(x).detach(), model(x.contiguous()).detach()));
}

TEST_CASE("matmuls written by hand are caught", "[guard][routing]") {
  OneLayer model;
  const auto& w = model->fc->weight;
  const auto& b = model->fc->bias;
  const auto x = torch::randn({3, 8}), residual = torch::randn({3, 4});
  const auto product = int8_result(x, w, {}, at::kFloat), sum = int8_result(*model->fc, x);
  const AutocastGuard guard(model, Mode::QAT);
  const torch::NoGradGuard no_grad;
  CHECK(same(torch::mm(x, w.t()), product));
  CHECK(same(x.mm(w.transpose(0, 1)), product));
  CHECK(same(torch::matmul(x, w.permute({1, 0})), product));
  CHECK(same(torch::linear(x, w), product));
  CHECK(same(torch::linear(x, w, b), sum));
  CHECK(same(torch::addmm(b, x, w.t()), sum));
  CHECK(same(nn::functional::linear(x, w, b), sum));
  CHECK(same(torch::addmm(residual, x, w.t()), product + residual));
  CHECK(same(torch::addmm(b, x, w.t(), 0, 2), product * 2));
  CHECK(same(torch::addmm(b, x, w.t(), 3, 1), at::add(product, b, 3)));
  CHECK(calls_of(guard, "fc") == 10);
}

TEST_CASE("a bias of another shape is added as LibTorch would", "[guard][routing]") {
  OneLayer model;
  const auto x = torch::randn({3, 8});
  const auto bias = GENERATE(torch::randn({1}), torch::randn({3, 4}), torch::randn({3, 1}), torch::full({}, 2.0F));
  const auto expected = int8_result(x, model->fc->weight, {}, at::kFloat) + bias;
  const AutocastGuard guard(model, Mode::QAT);
  const torch::NoGradGuard no_grad;
  CHECK(same(torch::addmm(bias, x, model->fc->weight.t()), expected));
  CHECK(same(torch::linear(x, model->fc->weight, bias), expected));
}

TEST_CASE("matmuls that are no layer's are untouched", "[guard][routing]") {
  OneLayer model(8, 8);
  const auto& w = model->fc->weight;
  const auto other = torch::randn({8, 8}), x = torch::randn({3, 8}), batch = torch::randn({2, 3, 8});
  const auto all = [&] {
    return std::vector<Tensor>{
        x.mm(other.t()), x.matmul(other), torch::linear(x, other), torch::addmm(x[0], x, other.t()),
        batch.matmul(other), torch::bmm(batch, batch.transpose(1, 2)), x.mm(x.t()), x.mv(other[0]),
        x.matmul(w),              // the weight, not its transpose
        w.matmul(x.t()),          // on the other side
        w.t().matmul(other),      // both
        x.matmul(w.t().clone()),  // its values elsewhere
        x.narrow(1, 0, 4).matmul(w.narrow(1, 0, 4).t())};
  };
  const auto before = all();
  const AutocastGuard guard(model, Mode::QAT);
  const auto inside = all();
  for (std::size_t i = 0; i < before.size(); ++i) {
    CAPTURE(i);
    CHECK(same(inside[i].detach(), before[i].detach()));
    CHECK(inside[i].requires_grad() == before[i].requires_grad());
  }
  CHECK(all_calls(guard) == 0);
}

TEST_CASE("rows of a weight are caught, and the gradient goes to them alone", "[guard][routing]") {
  OneLayer model(8, 6);
  const auto rows = model->fc->weight.narrow(0, 2, 3);
  const auto x = GENERATE(torch::randn({3, 8}), torch::randn({2, 3, 8}));
  const auto expected = int8_result(x, rows, {}, at::kFloat);
  const AutocastGuard guard(model, Mode::QAT);
  const auto y = x.matmul(rows.t());
  CHECK(same(y.detach(), expected));
  CHECK(calls_of(guard, "fc") == 1);
  y.sum().backward();
  const auto gradient = model->fc->weight.grad().abs().sum(1).gt(0);
  CHECK(at::equal(gradient.cpu(), torch::tensor({0, 0, 1, 1, 1, 0}).to(torch::kBool)));
}

TEST_CASE("a detached weight gets no gradient", "[guard][routing]") {
  OneLayer model;
  const auto x = torch::randn({3, 8}).set_requires_grad(true);
  const AutocastGuard guard(model, Mode::QAT);
  SECTION("by detach") { x.matmul(model->fc->weight.detach().t()).sum().backward(); }
  SECTION("by a transpose made without grad mode") {
    Tensor transposed;
    {
      const torch::NoGradGuard no_grad;
      transposed = model->fc->weight.t();
    }
    x.matmul(transposed).sum().backward();
  }
  CHECK(calls_of(guard, "fc") == 1);
  CHECK(x.grad().defined());
  CHECK_FALSE(model->fc->weight.grad().defined());
}

TEST_CASE("LibTorch's own error tells of a call that cannot be", "[guard][routing]") {
  OneLayer model;
  const auto x = GENERATE(torch::randn({3, 7}), torch::randn({3, 8}).to(torch::kDouble), torch::ones({3, 8}, torch::kInt));
  const auto plain = error_of([&] { model(x); });
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(plain != "");
  CHECK(error_of([&] { model(x); }) == plain);
  CHECK(all_calls(guard) == 0);
}

TEST_CASE("operands that LibTorch refuses to add get LibTorch's error", "[guard][routing]") {
  OneLayer model;
  const auto x = torch::randn({3, 8});
  const auto bias = GENERATE(torch::randn({2, 3, 4}), torch::randn({5}), torch::ones({4}, torch::kInt));
  const auto add = [&] { torch::addmm(bias, x, model->fc->weight.t()); };
  const auto linear = [&] { torch::linear(x, model->fc->weight, bias); };
  const auto plain = error_of(add), plain_linear = error_of(linear);
  CHECK(plain != "");
  CHECK(plain_linear != "");
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(error_of(add) == plain);
  CHECK(error_of(linear) == plain_linear);
  CHECK(all_calls(guard) == 0);
}

TEST_CASE("a call that fails does not count", "[guard][routing]") {
  OneLayer model;
  const AutocastGuard guard(model, Mode::Inference);
  CHECK(error_of([&] { model(torch::randn({3, 8})); }) != "");
  CHECK(all_calls(guard) == 0);
}

TEST_CASE("sparse inputs go to LibTorch, and so do nested ones, which come back as their rows", "[guard][routing]") {
  OneLayer model;
  const torch::NoGradGuard no_grad;
  const auto run = [&](const Tensor& x) { return torch::linear(x, model->fc->weight, model->fc->bias); };
  const auto sparse = torch::randn({3, 8}).to_sparse();
  const std::vector<Tensor> rows{torch::randn({2, 8}), torch::randn({3, 8})};
  const c10::impl::ExcludeDispatchKeyGuard own_devices(kTestKey);  // a nested tensor's sizes are on the CPU
  const auto nested = at::_nested_tensor_from_tensor_list(rows);
  const auto plain_sparse = run(sparse);
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(same(run(sparse), plain_sparse));
  CHECK(all_calls(guard) == 0);
  CHECK(same(run(nested).unbind()[1], int8_result(*model->fc, rows[1])));
  CHECK(calls_of(guard, "fc") == 1);
}
