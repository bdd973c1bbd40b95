// The dispatcher operations as other programs meet them: schemas, shapes, dtypes, autocast, InferenceMode,
// Meta, and that every way to the same layer gives the same bits.
#include <sstream>

#include "linear_calls.h"
#include "support.h"

using namespace te_int8_test;
namespace ops = te_int8::ops;

namespace {

constexpr auto kDtypes = {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16};

/// The forward from the operations below it.
at::Tensor composed(
    const at::Tensor& x, const at::Tensor& weight, const Optional& bias, at::ScalarType dtype,
    std::string_view x_granularity = "row", std::string_view weight_granularity = "row") {
  const auto rows = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  const auto [x_codes, x_scales] = ops::quantize_rows(x.reshape({rows, x.size(-1)}), x_granularity);
  const auto [codes, scales] = ops::quantize_rows(weight, weight_granularity);
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return ops::scaled_mm(x_codes, codes, x_scales, scales, bias, dtype).view(sizes);
}

bool alike(const at::Tensor& meta, const at::Tensor& real) {
  return meta.is_meta() && meta.sizes() == real.sizes() && meta.strides() == real.strides() &&
         meta.scalar_type() == real.scalar_type();
}

bool alike(const ops::Codes& meta, const ops::Codes& real) {
  return alike(std::get<0>(meta), std::get<0>(real)) && alike(std::get<1>(meta), std::get<1>(real));
}

}  // namespace

TEST_CASE("the schemas keep the names and defaults that programs rely on", "[operators]") {
  const std::vector<std::pair<std::string, std::string>> fixed = {
      {"quantize_rows", "(Tensor x, *, str granularity=\"row\""},
      {"quantize_columns", "(Tensor x"},
      {"quantize_rows_and_columns", "(Tensor x, *, bool column_sums=False"},
      {"column_sums", "(Tensor x"},
      {"requantize_columns", "(Tensor codes, Tensor scales"},
      {"dequantize", "(Tensor codes, Tensor scales, *, ScalarType? out_dtype=None"},
      {"scaled_mm",
       "(Tensor a, Tensor b, Tensor? a_scales=None, Tensor? b_scales=None, Tensor? bias=None, *, "
       "ScalarType? out_dtype=None"},
      {"linear",
       "(Tensor x, Tensor weight, Tensor? bias=None, *, bool int8_output=True, bool int8_grad_input=False, "
       "bool int8_grad_weight=False, str x_granularity=\"row\", str weight_granularity=\"row\""},
      {"linear_prequantized",
       "(Tensor x, Tensor codes, Tensor scales, Tensor? bias=None, *, Tensor? x_scales=None, "
       "ScalarType? out_dtype=None"},
  };
  for (const auto& [name, arguments] : fixed) {
    std::ostringstream schema;
    schema << c10::Dispatcher::singleton().findSchemaOrThrow(("te_int8::" + name).c_str(), "").schema();
    CHECK_THAT(schema.str(), Catch::Matchers::StartsWith("te_int8::" + name + arguments));
  }
}

TEST_CASE("linear, linear_prequantized and their parts agree bit for bit", "[operators]") {
  torch::manual_seed(31);
  for (const auto dtype : kDtypes) {
    for (const auto& [rows, depth] : {Shape{1, 1}, {7, 64}, {64, 129}, {3, 1500}, {0, 5}, {5, 0}}) {
      const auto x = random_matrix(rows, depth, dtype), w = random_matrix(31, depth, dtype);
      const auto [codes, scales] = ops::quantize_rows(w);
      const auto [x_codes, x_scales] = ops::quantize_rows(x);
      for (const auto& bias : {Optional(), Optional(at::randn({31}, dtype))}) {
        INFO(dtype << " " << rows << " x " << depth << (bias ? " with bias" : ""));
        const auto y = int8_linear(x, w, bias);
        CHECK(y.scalar_type() == dtype);
        CHECK(same(y, composed(x, w, bias, dtype)));
        CHECK(same(y, int8_linear_prequantized(x, codes, scales, bias)));
        CHECK(same(y, int8_linear_prequantized(x_codes, codes, scales, bias, x_scales, dtype)));
      }
    }
  }
}

TEST_CASE("granularities reach both operands", "[operators]") {
  torch::manual_seed(32);
  const auto x = random_matrix(2 * 5, 33, at::kFloat).view({2, 5, 33});
  const auto w = random_matrix(7, 33, at::kFloat), bias = at::randn({7});
  const std::string_view x_granularity = GENERATE("row", "tensor"), w_granularity = GENERATE("row", "tensor");
  const LinearOptions options{.x_granularity = x_granularity, .weight_granularity = w_granularity};
  const auto y = int8_linear(x, w, bias, options);
  CHECK(same(y, composed(x, w, bias, at::kFloat, x_granularity, w_granularity)));
  const auto [codes, scales] = ops::quantize_rows(w, w_granularity);
  const auto [x_codes, x_scales] = ops::quantize_rows(x, x_granularity);
  CHECK(same(y, int8_linear_prequantized(x_codes, codes, scales, bias, x_scales)));
}

TEST_CASE("inputs of 1 to 4 dimensions give the bits of 2 dimensions", "[operators]") {
  torch::manual_seed(33);
  for (const auto dtype : kDtypes) {
    const auto x = random_matrix(24, 65, dtype), w = random_matrix(17, 65, dtype);
    const auto bias = at::randn({17}, dtype);
    const auto y = int8_linear(x, w, bias);
    CHECK(same(int8_linear(x[5], w, bias), y[5]));
    CHECK(same(int8_linear(x.view({4, 6, 65}), w, bias), y.view({4, 6, 17})));
    CHECK(same(int8_linear(x.view({2, 3, 4, 65}), w, bias), y.view({2, 3, 4, 17})));
    const auto strided = x.view({4, 6, 65}).transpose(0, 1);
    CHECK(same(int8_linear(strided, w, bias), y.view({4, 6, 17}).transpose(0, 1)));
    CHECK(same(int8_linear(x, w.t().contiguous().t(), bias), y));
    CHECK(same(int8_linear(x.view({4, 6, 65}).narrow(0, 1, 0), w, bias), at::zeros({0, 6, 17}, dtype)));
  }
}

TEST_CASE("int8 inputs of any dimension take one scale per row or one for all", "[operators]") {
  torch::manual_seed(34);
  const auto codes = random_codes(6, 40), x = random_codes(2 * 3 * 4, 40);
  const auto scales = at::rand({6}), x_scales = at::rand({24}), one = at::rand({1});
  const auto y = ops::scaled_mm(x, codes, x_scales, scales);
  const auto got = int8_linear_prequantized(
      x.view({2, 3, 4, 40}), codes, scales, {}, x_scales.view({2, 3, 4}));
  CHECK(same(got, y.view({2, 3, 4, 6})));
  CHECK(same(int8_linear_prequantized(x[3], codes, scales, {}, x_scales[3]), y[3]));
  CHECK(same(
      int8_linear_prequantized(x.view({4, 6, 40}), codes, scales, {}, one),
      ops::scaled_mm(x, codes, one, scales).view({4, 6, 6})));
  const auto strided = int8_linear_prequantized(
      x.view({4, 6, 40}).transpose(0, 1), codes, scales, {}, x_scales.view({4, 6}).t());
  CHECK(same(strided, y.view({4, 6, 6}).transpose(0, 1)));
  CHECK(int8_linear_prequantized(x, codes, scales, {}, x_scales, at::kHalf).scalar_type() == at::kHalf);
}

TEST_CASE("a full-precision output is that of a plain linear layer", "[operators]") {
  torch::manual_seed(35);
  for (const auto dtype : kDtypes) {
    const auto x = random_matrix(6, 20, dtype).view({2, 3, 20}), w = random_matrix(9, 20, dtype);
    const auto bias = at::randn({9}, dtype);
    CHECK(same(int8_linear(x, w, bias, {.int8_output = false}), at::linear(x, w, bias)));
  }
}

TEST_CASE("operands of different dtypes are quantized as they are, out_dtype says the rest", "[operators]") {
  torch::manual_seed(36);
  const auto x = random_matrix(5, 70, at::kBFloat16), w = random_matrix(8, 70, at::kFloat);
  const auto bias = at::randn({8}, at::kDouble);
  for (const auto dtype : kDtypes) {
    const auto y = int8_linear(x, w, bias, {.out_dtype = dtype});
    CHECK(same(y, composed(x, w, bias, dtype)));
    const auto [codes, scales] = ops::quantize_rows(w);
    CHECK(same(y, int8_linear_prequantized(x, codes, scales, bias, {}, dtype)));
    CHECK(int8_linear(x, w, bias, {.int8_output = false, .out_dtype = dtype}).scalar_type() == dtype);
  }
}

TEST_CASE("autocast gives its dtype and quantizes what was not cast", "[operators][autocast]") {
  torch::manual_seed(37);
  const auto x = random_matrix(40, 64, at::kFloat), w = random_matrix(50, 64, at::kFloat);
  const auto bias = at::randn({50});
  const auto [codes, scales] = ops::quantize_rows(w);
  const auto expected = composed(x, w, bias, at::kBFloat16);
  const auto in_float = composed(x, w, bias, at::kFloat);
  const auto from_cast = composed(x, w.to(at::kBFloat16), bias, at::kBFloat16);
  REQUIRE_FALSE(same(expected, from_cast));
  const Bf16Autocast autocast;
  CHECK(same(int8_linear(x, w, bias), expected));
  CHECK(same(int8_linear_prequantized(x, codes, scales, bias), expected));
  CHECK(same(int8_linear(x, w, bias, {.out_dtype = at::kFloat}), in_float));
  const auto plain = int8_linear(x, w, bias, {.int8_output = false});
  CHECK(same(plain, at::linear(x, w, bias)));
  CHECK(plain.scalar_type() == at::kBFloat16);
  CHECK(int8_linear(x.to(at::kHalf), w, bias).scalar_type() == at::linear(x.to(at::kHalf), w).scalar_type());
  CHECK(int8_linear(x.to(at::kDouble), w.to(at::kDouble)).scalar_type() == at::kDouble);
  const auto q = ops::quantize_rows(x);
  const auto from_codes = int8_linear_prequantized(std::get<0>(q), codes, scales, bias, std::get<1>(q));
  CHECK(from_codes.scalar_type() == at::kBFloat16);
}

TEST_CASE("Meta tensors get the shapes, strides and dtypes of real ones", "[operators][meta]") {
  const auto meta = [](const at::Tensor& x) { return x.to(at::kMeta); };
  torch::manual_seed(38);
  for (const auto dtype : kDtypes) {
    const auto x = random_matrix(12, 10, dtype), w = random_matrix(7, 10, dtype);
    const auto bias = at::randn({7}, dtype);
    const auto [codes, scales] = ops::quantize_rows(w);
    CHECK(alike(ops::quantize_columns(meta(x)), ops::quantize_columns(x)));
    const auto [r, rs, c, cs, none] = ops::quantize_rows_and_columns(meta(x));
    CHECK(alike(ops::column_sums(meta(x)), ops::column_sums(x)));
    CHECK(alike(std::get<4>(ops::quantize_rows_and_columns(meta(x), true)), std::get<4>(ops::quantize_rows_and_columns(x, true))));
    CHECK(none.sizes() == at::IntArrayRef{0});
    CHECK(alike({r, rs}, ops::quantize_rows(x)));
    CHECK(alike({c, cs}, ops::quantize_columns(x)));
    CHECK(alike(ops::requantize_columns(meta(codes), meta(scales)), ops::requantize_columns(codes, scales)));
    CHECK(alike(ops::dequantize(meta(codes), meta(scales), dtype), ops::dequantize(codes, scales, dtype)));
    const auto inputs = {
        x, x.t().contiguous().t(), x[2], x.view({3, 4, 10}), x.view({3, 4, 10}).transpose(0, 1),
        x.view({3, 2, 2, 10}), x.narrow(0, 3, 0), x.view({3, 4, 10}).narrow(1, 2, 0)};
    for (const auto& input : inputs) {
      INFO(dtype << " " << input.sizes() << " strides " << input.strides());
      for (const auto* granularity : {"row", "tensor"}) {
        const auto real = ops::quantize_rows(input, granularity);
        CHECK(alike(ops::quantize_rows(meta(input), granularity), real));
        const auto& [q, s] = real;
        CHECK(alike(
            int8_linear_prequantized(meta(q), meta(codes), meta(scales), meta(bias), meta(s)),
            int8_linear_prequantized(q, codes, scales, bias, s)));
      }
      for (const bool int8_output : {true, false}) {
        for (const auto& out_dtype : {OptionalType(), OptionalType(at::kHalf)}) {
          const LinearOptions options{.int8_output = int8_output, .out_dtype = out_dtype};
          CHECK(alike(
              int8_linear(meta(input), meta(w), meta(bias), options),
              int8_linear(input, w, bias, options)));
          CHECK(alike(
              int8_linear(meta(input), meta(w), {}, options), int8_linear(input, w, {}, options)));
        }
      }
      CHECK(alike(
          int8_linear_prequantized(meta(input), meta(codes), meta(scales)),
          int8_linear_prequantized(input, codes, scales)));
    }
    const auto a = random_codes(3, 10);
    for (const auto out : {at::kFloat, at::kHalf, at::kInt}) {
      CHECK(alike(
          ops::scaled_mm(meta(a), meta(codes), {}, {}, {}, out),
          ops::scaled_mm(a, codes, {}, {}, {}, out)));
    }
  }
}

TEST_CASE("InferenceMode gives the same bits", "[operators]") {
  torch::manual_seed(39);
  const auto x = random_matrix(8, 30, at::kFloat);
  const auto w = random_matrix(5, 30, at::kFloat).requires_grad_(), bias = at::randn({5}).requires_grad_();
  const auto y = int8_linear(x, w, bias);
  const auto [codes, scales] = ops::quantize_rows(w.detach());
  at::Tensor made_inside;
  {
    const c10::InferenceMode inference;
    made_inside = x.clone();
    const auto inside = int8_linear(x, w, bias);
    CHECK(same(inside, y));
    CHECK(inside.is_inference());
    CHECK(same(int8_linear(made_inside, w, bias), y));
    CHECK(same(int8_linear_prequantized(made_inside, codes, scales, bias), y));
    CHECK(same(ops::quantize_rows(w), {codes, scales}));
  }
  // An inference tensor as an activation of a layer that trains: only its codes are saved.
  const auto outside = int8_linear(made_inside, w, bias);
  CHECK(same(outside, y));
  CHECK(outside.requires_grad());
}
