// Embeddings in a scope: codes by row where the recipe asks for them, straight-through gradients, tied heads.
#include "guard_support.h"

using namespace te_int8_test;

namespace {

const auto kWithEmbeddings = [] { return Recipe().embeddings(Precision::Int8); };

struct HasEmbeddingImpl : nn::Module {
  explicit HasEmbeddingImpl(const nn::EmbeddingOptions& options) : tokens(register_module("tokens", nn::Embedding(options))) {}
  Tensor forward(const Tensor& indices) { return tokens(indices); }
  nn::Embedding tokens;
};
TORCH_MODULE(HasEmbedding);

/// A head that shares the table.
struct TiedHeadImpl : nn::Module {
  TiedHeadImpl()
      : tokens(register_module("tokens", nn::Embedding(24, 16))),
        head(register_module("head", nn::Linear(nn::LinearOptions(16, 24).bias(false)))) {
    head->weight = tokens->weight;
  }
  Tensor forward(const Tensor& indices) { return head(torch::tanh(tokens(indices))); }
  nn::Embedding tokens;
  nn::Linear head;
};
TORCH_MODULE(TiedHead);

}  // namespace

TEST_CASE("an embedding gives rows of the dequantized table", "[guard][embedding]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16, torch::kHalf, torch::kDouble);
  const auto shape = GENERATE(std::vector<int64_t>{5}, std::vector<int64_t>{2, 3}, std::vector<int64_t>{}, std::vector<int64_t>{0, 4});
  const auto context = GENERATE("grad", "no grad", "inference", "autocast");
  CAPTURE(dtype, shape, context);
  HasEmbedding model(nn::EmbeddingOptions(11, 7));
  model->to(dtype);
  const Snapshot before(*model);
  const auto indices = torch::randint(11, shape, torch::kLong);
  const auto table = dequantized(model->tokens->weight).to(dtype);
  const auto expected = at::embedding(table, indices);
  const auto plain = model(indices);
  in_context(context, [&] {
    const AutocastGuard guard(model, Mode::QAT, kWithEmbeddings());
    CHECK(same(model(indices).detach(), expected));
    CHECK(same(model(indices.to(torch::kInt)).detach(), expected));
    CHECK(calls_of(guard, "tokens") == 2);
    CHECK(printed(*model).find("te_int8::QuantizedEmbedding(num_embeddings=11") != std::string::npos);
  });
  {
    const torch::NoGradGuard no_grad;
    const AutocastGuard guard(model, Mode::Inference, kWithEmbeddings());
    CHECK(same(model(indices), expected));
  }
  CHECK(before.holds(*model));
  CHECK(same(model(indices).detach(), plain.detach()));
}

TEST_CASE("gradients of an embedding go straight to its table", "[guard][embedding]") {
  const auto name = GENERATE("plain", "padding", "by frequency", "sparse", "one scale");
  CAPTURE(name);
  const std::string option = name;
  auto options = nn::EmbeddingOptions(11, 7);
  if (option == "padding") options.padding_idx(3);
  if (option == "by frequency") options.scale_grad_by_freq(true);
  if (option == "sparse") options.sparse(true);
  HasEmbedding model(options);
  const auto indices = torch::tensor({{1, 3, 3}, {10, 1, 0}}, torch::kLong).to(test_device());
  const auto dy = torch::randn({2, 3, 7});
  const auto expected = torch::autograd::grad({model(indices)}, {model->tokens->weight}, {dy})[0];
  auto recipe = kWithEmbeddings();
  if (option == "one scale") recipe.weights(te_int8::Granularity::per_tensor());
  Tensor y;
  {
    const AutocastGuard guard(model, Mode::QAT, recipe);
    y = model(indices);
  }
  const auto got = torch::autograd::grad({y}, {model->tokens->weight}, {dy})[0];
  CHECK(got.is_sparse() == (option == "sparse"));
  CHECK(same(got.is_sparse() ? got.to_dense() : got, expected.is_sparse() ? expected.to_dense() : expected));
  if (option == "one scale") {
    const auto [codes, scale] = te_int8::ops::quantize_rows(model->tokens->weight.detach(), "tensor");
    CHECK(same(y.detach(), at::embedding(codes.to(torch::kFloat) * scale, indices)));
  }
}

TEST_CASE("an embedding stays in full precision unless a recipe asks", "[guard][embedding]") {
  HasEmbedding model(nn::EmbeddingOptions(11, 7));
  const auto indices = torch::randint(11, {5}, torch::kLong);
  const Warnings nothing_to_quantize;
  const AutocastGuard guard(model, Mode::QAT);
  CHECK(same(model(indices).detach(), at::embedding(model->tokens->weight.detach(), indices)));
  CHECK(line_of(guard.report(), "tokens").reason == "embeddings are in full precision unless Recipe::embeddings is Int8");
}

TEST_CASE("a table and the head that is tied to it share codes, not their fate", "[guard][embedding]") {
  TiedHead model;
  const auto indices = torch::randint(24, {2, 5}, torch::kLong);
  SECTION("the head alone") {
    const AutocastGuard guard(model, Mode::QAT);
    const auto hidden = torch::tanh(at::embedding(model->tokens->weight.detach(), indices));
    CHECK(same(model(indices).detach(), int8_result(*model->head, hidden)));
    CHECK(line_of(guard.report(), "tokens").action == "full precision");
    CHECK(calls_of(guard, "head") == 1);
  }
  SECTION("both, with one set of codes") {
    const torch::NoGradGuard no_grad;
    const AutocastGuard guard(model, Mode::Inference, kWithEmbeddings());
    const QuantizationCounter counter;
    const auto hidden = torch::tanh(at::embedding(dequantized(model->tokens->weight), indices));
    const int by_hand = counter.of(model->tokens->weight);
    const auto y = model(indices);
    CHECK(counter.of(model->tokens->weight) - by_hand == 1);
    CHECK(same(y, int8_result(*model->head, hidden)));
    CHECK(calls_of(guard, "head") == 1);
    CHECK(calls_of(guard, "tokens") == 1);
  }
  SECTION("gradients add up") {
    const auto weight = model->tokens->weight;
    const auto truth = fake_quantized_linear(torch::tanh(at::embedding(straight_through(weight), indices)), weight, {});
    const auto expected = torch::autograd::grad({truth.sin().sum()}, {weight})[0];
    Tensor loss;
    {
      const AutocastGuard guard(model, Mode::QAT, kWithEmbeddings());
      loss = model(indices).sin().sum();
    }
    CHECK(relative_error(torch::autograd::grad({loss}, {weight})[0], expected) < 1e-5);
  }
}

TEST_CASE("an embedding sees steps, and LibTorch's errors stay LibTorch's", "[guard][embedding]") {
  HasEmbedding model(nn::EmbeddingOptions(11, 7).max_norm(1.0));
  const auto indices = torch::tensor({1, 2, 2}, torch::kLong).to(test_device());
  const AutocastGuard guard(model, Mode::QAT, kWithEmbeddings());
  {
    const torch::NoGradGuard no_grad;
    const auto y = model(indices);  // which bounds the table's rows
    CHECK(same(y, at::embedding(dequantized(model->tokens->weight), indices)));
  }
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  model(indices).sum().backward();
  optimizer.step();
  const torch::NoGradGuard no_grad;
  const auto y = model(indices);
  CHECK(same(y, at::embedding(dequantized(model->tokens->weight), indices)));
  CHECK(error_of([&] { model(indices.to(torch::kFloat)); }).find("te_int8") == std::string::npos);
}
