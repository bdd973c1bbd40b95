// The codes and scales of the quantizing operations, bit for bit those of the definition.
#include <cfloat>

#include "support.h"

using namespace te_int8_test;
namespace ops = te_int8::ops;

namespace {

bool equals(const ops::Codes& got, const ScalarCodes& expected) {
  const auto& [codes, scales] = got;
  return codes.is_contiguous() && scales.is_contiguous() && codes.scalar_type() == at::kChar &&
         scales.scalar_type() == at::kFloat && read<int8_t, int8_t>(codes) == expected.codes &&
         same(read<float, float>(scales), expected.scales);
}

bool rows_match(const at::Tensor& x) {
  const auto columns = x.size(-1);
  const auto rows = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  const auto got = ops::quantize_rows(x);
  return std::get<0>(got).sizes() == x.sizes() &&
         std::get<1>(got).sizes() == x.sizes().slice(0, x.dim() - 1) &&
         equals(got, quantize_by_definition(floats(x), rows, columns));
}

bool tensor_matches(const at::Tensor& x) {
  const auto got = ops::quantize_rows(x, "tensor");
  return std::get<0>(got).sizes() == x.sizes() && std::get<1>(got).sizes() == at::IntArrayRef{1} &&
         equals(got, quantize_by_definition(floats(x), 1, x.numel()));
}

bool columns_match(const at::Tensor& x) {
  const auto rows = x.size(0), columns = x.size(1);
  const auto got = ops::quantize_columns(x);
  return std::get<0>(got).sizes() == at::IntArrayRef{columns, rows} &&
         std::get<1>(got).sizes() == at::IntArrayRef{columns} &&
         equals(got, quantize_by_definition(transpose(floats(x), rows, columns), columns, rows));
}

/// scales [rows] or [1]
bool requantized_columns_match(const at::Tensor& codes, const at::Tensor& scales) {
  const auto rows = codes.size(0), columns = codes.size(1);
  const auto plain = read<float, int8_t>(codes);
  const auto factors = read<float, float>(scales);
  std::vector<float> values;
  for (size_t i = 0; i < plain.size(); ++i) {
    values.push_back(plain[i] * factors[factors.size() == 1 ? 0 : i / static_cast<size_t>(columns)]);
  }
  return equals(
      ops::requantize_columns(codes, scales),
      quantize_by_definition(transpose(values, rows, columns), columns, rows));
}

at::Tensor row_of(const std::vector<double>& values) {
  return torch::tensor(values, at::kDouble).to(test_device()).unsqueeze(0);
}

std::vector<int8_t> codes_of(const at::Tensor& x) {
  return read<int8_t, int8_t>(std::get<0>(ops::quantize_rows(x)));
}

float scale_of(const at::Tensor& x) { return std::get<1>(ops::quantize_rows(x))[0].item<float>(); }

}  // namespace

TEST_CASE("320 shapes in every layout have the codes of the definition", "[numbers][operators]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16);
  torch::manual_seed(11);
  int64_t count = static_cast<int64_t>(dtype);
  for (const auto& [rows, columns] : shapes()) {
    const auto layout = static_cast<Layout>(++count % kLayouts);
    const auto x = lay_out(random_matrix(rows, columns, dtype, /*special=*/true), layout);
    const auto plain = lay_out(random_matrix(rows, columns, dtype), layout);
    INFO(dtype << " " << rows << " x " << columns << ", layout " << static_cast<int>(layout));
    REQUIRE(rows_match(x));
    REQUIRE(columns_match(x));
    REQUIRE(tensor_matches(x));
    REQUIRE(tensor_matches(plain));
  }
}

TEST_CASE("large and extreme shapes have the codes of the definition", "[numbers][operators]") {
  const auto [rows, columns] = GENERATE(
      Shape{1, 3221}, Shape{2333, 1}, Shape{1481, 677}, Shape{2, 1'000'003}, Shape{200'003, 2});
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  torch::manual_seed(12);
  const auto x = random_matrix(rows, columns, dtype);
  INFO(dtype << " " << rows << " x " << columns);
  CHECK(rows_match(x));
  CHECK(rows_match(x.t()));
  CHECK(columns_match(x));
  CHECK(tensor_matches(x));
}

TEST_CASE("inputs of 1, 3 and 4 dimensions have one scale per row", "[numbers][operators]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16);
  torch::manual_seed(13);
  const auto x = random_matrix(6 * 35, 11, dtype, /*special=*/true);
  CHECK(rows_match(x[3]));
  CHECK(rows_match(x.view({6, 35, 11})));
  CHECK(rows_match(x.view({6, 5, 7, 11})));
  CHECK(rows_match(x.view({6, 5, 7, 11}).permute({3, 1, 0, 2})));
  CHECK(rows_match(x.view({6, 5, 7, 11}).slice(1, 1, 5, 2).slice(3, 3)));
  CHECK(rows_match(x.view({6, 35, 11}).narrow(1, 4, 0)));
  CHECK(rows_match(x.view({6, 35, 11}).narrow(2, 4, 0)));
  CHECK(rows_match(at::zeros({0}, dtype)));
  CHECK(rows_match(x.select(1, 2).unsqueeze(0).expand({4, -1, -1}).transpose(0, 1)));
  CHECK(tensor_matches(x.view({6, 5, 7, 11}).permute({3, 1, 0, 2})));
  CHECK(tensor_matches(at::scalar_tensor(-2.5, dtype)));
  CHECK(tensor_matches(at::zeros({3, 0, 2}, dtype)));
}

TEST_CASE("columns of codes are requantized as columns of their values", "[numbers][operators]") {
  torch::manual_seed(14);
  int64_t count = 0;
  for (const auto& [rows, columns] : shapes()) {
    const auto layout = static_cast<Layout>(++count % kLayouts);
    const auto codes = lay_out(random_codes(rows, columns), layout);
    auto scales = at::randn({2 * rows}).mul_(3).exp_().slice(0, 0, {}, 2);
    const auto one = at::rand({1});
    INFO(rows << " x " << columns << ", layout " << static_cast<int>(layout));
    REQUIRE(requantized_columns_match(codes, scales));
    REQUIRE(requantized_columns_match(codes, one));
    REQUIRE(same(ops::requantize_columns(codes, scales), ops::quantize_columns(codes * scales.unsqueeze(1))));
    if (rows > 2) {
      scales[0] = 0;
      REQUIRE(requantized_columns_match(codes, scales));
      scales[rows / 2] = NAN;
      REQUIRE(requantized_columns_match(codes, scales));
      scales[rows / 2] = 1e38;
      REQUIRE(requantized_columns_match(codes, scales));
    }
  }
}

TEST_CASE("codes of known values", "[numbers]") {
  using Bytes = std::vector<int8_t>;
  CHECK(codes_of(row_of({1, -2, 3})) == Bytes{42, -85, 127});
  CHECK(codes_of(row_of({-5, 0, 2.5})) == Bytes{-127, 0, 64});
  CHECK(scale_of(row_of({-5, 0, 2.5})) == 5.0F / 127.0F);

  SECTION("ties go to the even code") {
    const auto ties = row_of({127, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 125.5, 126.5, -126.5});
    for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf}) {
      CHECK(codes_of(ties.to(dtype)) == Bytes{127, 0, 2, 2, 4, 0, -2, -2, 126, 126, -126});
    }
  }
  SECTION("a double is rounded to float before all else") {
    // In double 0.5000000001 would round to 1.
    CHECK(codes_of(row_of({127, 0.5000000001, -1.4999999999})) == Bytes{127, 0, -2});
  }
}

TEST_CASE("zeros and values too small to scale give codes 0 and scale 0", "[numbers]") {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    CHECK(scale_of(at::zeros({1, 5}, dtype)) == 0);
    CHECK(scale_of(at::full({1, 5}, -0.0, dtype)) == 0);
    CHECK(codes_of(at::zeros({1, 2}, dtype)) == std::vector<int8_t>{0, 0});
  }
  // The smallest amax with a finite 127 / amax, and its neighbour below.
  float amax = 127.0F / FLT_MAX;
  while (std::isfinite(127.0F / amax)) amax = std::nextafter(amax, 0.0F);
  const auto below = row_of({amax, 0});
  const auto above = row_of({std::nextafter(amax, 1.0F), 0});
  CHECK(scale_of(below) == 0);
  CHECK(codes_of(below) == std::vector<int8_t>{0, 0});
  CHECK(scale_of(above) > 0);
  CHECK(codes_of(above) == std::vector<int8_t>{127, 0});
  CHECK(scale_of(row_of({1e-300, -1e-300})) == 0);  // a double that is 0 in float
  CHECK(scale_of(row_of({FLT_TRUE_MIN, -FLT_TRUE_MIN})) == 0);
}

TEST_CASE("the largest floats are quantized without overflow", "[numbers]") {
  const auto x = row_of({FLT_MAX, -FLT_MAX, FLT_MAX / 2, 0});
  CHECK(codes_of(x) == std::vector<int8_t>{127, -127, 64, 0});
  CHECK(scale_of(x) == FLT_MAX / 127.0F);
}

TEST_CASE("a row that is not finite gives codes 0 and scale NaN", "[numbers]") {
  const double bad = GENERATE(NAN, INFINITY, -INFINITY, 1e39, -1e39);
  auto x = at::ones({3, 4}, at::kDouble);
  x[1][2] = bad;
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16);
  const auto [codes, scales] = ops::quantize_rows(x.to(dtype));
  INFO(bad << " as " << dtype);
  CHECK(codes[1].eq(0).all().item<bool>());
  CHECK(scales.isnan().cpu().equal(torch::tensor({false, true, false})));
  CHECK(codes[0].eq(127).all().item<bool>());

  const auto [columns, column_scales] = ops::quantize_columns(x.to(dtype));
  CHECK(columns[2].eq(0).all().item<bool>());
  CHECK(column_scales.isnan().cpu().equal(torch::tensor({false, false, true, false})));
  const auto [all, scale] = ops::quantize_rows(x.to(dtype), "tensor");
  CHECK(all.eq(0).all().item<bool>());
  CHECK(scale.isnan().all().item<bool>());
}

TEST_CASE("the largest code is 127 and a code is off by half a step at most", "[numbers]") {
  torch::manual_seed(15);
  const auto x = at::randn({997, 211}).mul_(at::randn({997, 1}).mul_(20).exp_());
  const auto [codes, scales] = ops::quantize_rows(x);
  CHECK(codes.abs().amax(1).eq(127).all().item<bool>());
  CHECK(codes.min().item<int>() == -127);
  const auto restored = codes.to(at::kDouble) * scales.to(at::kDouble).unsqueeze(1);
  const auto steps = (restored - x.to(at::kDouble)).abs() / scales.to(at::kDouble).unsqueeze(1);
  CHECK(steps.max().item<double>() < 0.5 + 1e-4);
}
