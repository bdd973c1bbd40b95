// te_int8::scaled_mm: exact sums, one epilogue formula.
#include <climits>
#include <optional>

#include <te_int8/backends.h>

#include "linear_calls.h"
#include "support.h"

using namespace te_int8_test;
namespace ops = te_int8::ops;

namespace {

std::vector<int64_t> sums_by_definition(const at::Tensor& a, const at::Tensor& b) {
  const auto m = a.size(0), n = b.size(0), k = a.size(1);
  const auto left = read<int64_t, int8_t>(a), right = read<int64_t, int8_t>(b);
  std::vector<int64_t> sums(static_cast<size_t>(m * n), 0);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      int64_t sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += left[static_cast<size_t>(i * k + l)] * right[static_cast<size_t>(j * k + l)];
      }
      sums[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return sums;
}

bool raw_sums_match(const at::Tensor& a, const at::Tensor& b) {
  const auto got = ops::scaled_mm(a, b, {}, {}, {}, at::kInt);
  return got.scalar_type() == at::kInt && got.sizes() == at::IntArrayRef{a.size(0), b.size(0)} &&
         read<int64_t, int32_t>(got) == sums_by_definition(a, b);
}

bool float_sums_match(const at::Tensor& a, const at::Tensor& b) {
  std::vector<float> expected;
  for (const auto sum : sums_by_definition(a, b)) expected.push_back(static_cast<float>(sum));
  return same(floats(ops::scaled_mm(a, b)), expected);
}

float element(const Optional& values, int64_t i, float otherwise) {
  if (!values) return otherwise;
  return floats(*values)[static_cast<size_t>(values->numel() == 1 ? 0 : i)];
}

template <typename Narrow>
void round_to(std::vector<float>& values) {
  for (auto& value : values) value = static_cast<float>(static_cast<Narrow>(value));
}

/// Whether b_scale and bias enter by a fused multiply-add, as in every kernel for CUDA.
bool rounds_once() {
  return te_int8::detail::backend_name(te_int8::detail::current_backend(), test_device().type()) != "reference" &&
         test_device().is_cuda();
}

struct Epilogue {
  std::vector<float> formula;  ///< (float(sum) * a_scale) * b_scale + bias, rounded as the back end does
  std::vector<double> exact, bound;
};

Epilogue epilogue(
    const at::Tensor& a, const at::Tensor& b, const Optional& a_scales, const Optional& b_scales,
    const Optional& bias) {
  Epilogue result;
  const auto sums = sums_by_definition(a, b);
  const auto n = b.size(0);
  for (int64_t i = 0; i < static_cast<int64_t>(sums.size()); ++i) {
    const auto sum = sums[static_cast<size_t>(i)];
    const float s = element(a_scales, i / n, 1), t = element(b_scales, i % n, 1);
    const float c = element(bias, i % n, 0);
    volatile float value = static_cast<float>(sum);  // volatile: no step may be fused into the next
    if (a_scales) value = value * s;
    if (rounds_once()) {
      value = std::fma(b_scales ? t : 1.0F, value, bias ? c : -0.0F);
    } else {
      if (b_scales) value = value * t;
      if (bias) value = value + c;
    }
    result.formula.emplace_back(value);
    const double product = static_cast<double>(sum) * s * t;
    result.exact.push_back(product + c);
    result.bound.push_back(std::ldexp(std::fabs(product) + std::fabs(c), -22));
  }
  return result;
}

}  // namespace

TEST_CASE("raw sums of every shape and layout are exact", "[numbers][operators]") {
  torch::manual_seed(21);
  int64_t count = 0;
  for (const auto& [rows, depth] : shapes()) {
    const auto columns = count % 13;  // 0 included
    const auto layout = static_cast<Layout>(++count % kLayouts);
    const auto other = static_cast<Layout>(count / kLayouts % kLayouts);
    const auto a = lay_out(random_codes(rows, depth), layout);
    const auto b = lay_out(random_codes(columns, depth), other);
    INFO("M " << rows << " N " << columns << " K " << depth << ", layout " << static_cast<int>(layout));
    REQUIRE(raw_sums_match(a, b));
    REQUIRE(float_sums_match(a, b));
  }
}

TEST_CASE("sums of extreme codes are exact up to K = 131071", "[numbers][operators]") {
  const int64_t depth = GENERATE(0, 1, 1023, 1024, 1025, 4096, 131'071);
  const auto filled = [&](int code) { return at::full({1, depth}, code, at::kChar); };
  // Rows of one sign reach the largest sums of either sign; the last row cancels.
  auto mixed = filled(127);
  mixed.slice(1, 0, {}, 2).fill_(-128);
  const auto a = at::cat({filled(-128), filled(127), mixed});
  INFO("K " << depth);
  CHECK(raw_sums_match(a, a));
  CHECK(float_sums_match(a, a));
  const auto largest = ops::scaled_mm(filled(-128), filled(-128), {}, {}, {}, at::kInt);
  CHECK(largest.item<int64_t>() == depth * 128 * 128);
}

TEST_CASE("beyond K = 131071 sums are exact in float and refused in int32", "[numbers][operators]") {
  const int64_t depth = GENERATE(131'072, 131'073, 400'009);
  torch::manual_seed(22);
  auto a = at::cat({at::full({2, depth}, -128, at::kChar), random_codes(1, depth)});
  a[1].slice(0, 0, 77, 3).fill_(5);
  REQUIRE(sums_by_definition(a, a)[0] > INT_MAX);
  CHECK(float_sums_match(a, a));
  CHECK_THAT(
      error_of([&] { ops::scaled_mm(a, a, {}, {}, {}, at::kInt); }),
      Catch::Matchers::ContainsSubstring("te_int8::scaled_mm: expected K <= 131071") &&
          Catch::Matchers::ContainsSubstring("got " + std::to_string(depth)));
}

TEST_CASE("sums are exact and float by default under autocast", "[numbers][operators]") {
  torch::manual_seed(26);
  const auto depth = GENERATE(300, 1500);
  const auto a = random_codes(20, depth), b = random_codes(30, depth);
  const Bf16Autocast autocast;
  CHECK(raw_sums_match(a, b));
  CHECK(ops::scaled_mm(a, b).scalar_type() == at::kFloat);
  CHECK(float_sums_match(a, b));
}

TEST_CASE("a reduced float32 matmul precision does not reach the sums", "[numbers][operators]") {
  struct Restore {
    ~Restore() { at::globalContext().setFloat32MatmulPrecision("highest"); }
  } restore;
  torch::manual_seed(23);
  const auto a = random_codes(65, 1500), b = random_codes(66, 1500);
  at::globalContext().setFloat32MatmulPrecision("medium");
  CHECK(raw_sums_match(a, b));
}

TEST_CASE("scales and bias follow the formula of the epilogue", "[numbers][operators]") {
  torch::manual_seed(24);
  const auto [m, n, k] = GENERATE(
      table<int64_t, int64_t, int64_t>({{1, 1, 1}, {5, 7, 129}, {37, 1, 1100}, {1, 53, 64}, {3, 4, 0}}));
  const auto a_kind = GENERATE(0, 1, 2), b_kind = GENERATE(0, 1, 2);  // none, [1], one per row
  const auto a = random_codes(m, k), b = random_codes(n, k);
  const auto scales = [](int kind, int64_t rows) -> Optional {
    if (kind == 0) return {};
    return at::randn({2 * (kind == 1 ? 1 : rows)}).mul_(4).exp_().slice(0, 0, {}, 2);
  };
  const auto a_scales = scales(a_kind, m), b_scales = scales(b_kind, n);
  const std::vector<Optional> biases = {
      {}, at::randn({n}) * 100, at::randn({n}, at::kBFloat16), at::randn({2 * n}, at::kHalf).slice(0, 0, {}, 2),
      at::randn({n}, at::kDouble)};
  for (const auto& bias : biases) {
    const auto expected = epilogue(a, b, a_scales, b_scales, bias);
    const auto y = floats(ops::scaled_mm(a, b, a_scales, b_scales, bias));
    bool close = y.size() == expected.exact.size();
    for (size_t i = 0; close && i < y.size(); ++i) {
      close = std::fabs(y[i] - expected.exact[i]) <= expected.bound[i];
    }
    CHECK(close);                      // what every back end promises
    CHECK(same(y, expected.formula));  // what this one gives

    auto rounded = expected.formula;
    for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
      if (dtype == at::kHalf) round_to<at::Half>(rounded = expected.formula);
      if (dtype == at::kBFloat16) round_to<at::BFloat16>(rounded = expected.formula);
      const auto cast = ops::scaled_mm(a, b, a_scales, b_scales, bias, dtype);
      INFO("out_dtype " << dtype);
      CHECK(cast.scalar_type() == dtype);
      CHECK(cast.is_contiguous());
      CHECK(same(floats(cast), rounded));
    }
  }
}

TEST_CASE("a NaN scale makes its row or column NaN and nothing else", "[numbers][operators]") {
  torch::manual_seed(25);
  const auto a = at::zeros({4, 40}, at::kChar), b = random_codes(5, 40);
  auto a_scales = at::rand({4}), b_scales = at::rand({5});
  a_scales[2] = NAN;
  b_scales[1] = NAN;
  for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    const auto y = ops::scaled_mm(a, b, a_scales, b_scales, at::ones({5}), dtype);
    auto expected = at::zeros({4, 5}, at::kBool);
    expected[2].fill_(true);
    expected.select(1, 1).fill_(true);
    CHECK(y.isnan().equal(expected));
  }
}

TEST_CASE("add_scaled_mm_ adds a product", "[operators]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16);
  torch::manual_seed(51);
  for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {7, 5, 3}, {64, 64, 64}, {64, 128, 32}, {130, 264, 144}, {97, 101, 113}, {0, 4, 8}, {4, 0, 8}, {4, 16, 0}}) {
    for (const int64_t scales : {0, 1, 2}) {
      const auto layout = static_cast<Layout>((m + scales) % 5);
      CAPTURE(m, n, k, dtype, scales, static_cast<int>(layout));
      // Powers of two and short integers: every value before the cast is exact, in whatever order it is found.
      const auto a = torch::randint(-9, 10, {m, k}).to(at::kChar), b = torch::randint(-9, 10, {n, k}).to(at::kChar);
      const auto powers = [](int64_t count) { return torch::pow(2, torch::randint(-3, 3, {count}).to(at::kFloat)); };
      const auto a_scales = scales == 0 ? Optional() : Optional(powers(scales == 1 ? 1 : m));
      const auto b_scales = scales == 0 ? Optional() : Optional(powers(scales == 1 ? 1 : n));
      const auto start = (torch::randint(-100, 100, {m, n}) / 8).to(dtype);
      auto product = ops::scaled_mm(a, b, a_scales, b_scales, {}, at::kDouble);
      const auto expected = (product + start.to(at::kDouble)).to(at::kFloat).to(dtype);
      auto self = lay_out(start.clone(), layout);
      const auto version = self._version();
      ops::add_scaled_mm_(self, a, b, a_scales, b_scales);
      REQUIRE(same(self, expected));
      CHECK(self._version() == version + 1);
    }
  }
}

TEST_CASE("add_scaled_mm_ says what it expected", "[operators]") {
  const auto a = torch::zeros({2, 4}, at::kChar), b = torch::zeros({3, 4}, at::kChar);
  const auto error = [&](at::Tensor self) { return error_of([&] { ops::add_scaled_mm_(self, a, b); }); };
  using Catch::Matchers::ContainsSubstring;
  CHECK_THAT(error(torch::zeros({3, 2})), ContainsSubstring("add_scaled_mm_: expected self [2, 3]"));
  CHECK_THAT(
      error(torch::zeros({2, 3}, at::kInt)),
      ContainsSubstring("add_scaled_mm_: expected self to be float, double, half or bfloat16"));
  CHECK_THAT(error(torch::zeros({6})), ContainsSubstring("add_scaled_mm_: expected self to have 2 dimensions"));
  CHECK_THAT(error(torch::zeros({2, 3}).requires_grad_()), ContainsSubstring("add_scaled_mm_: expected inputs without requires_grad"));
  CHECK_THAT(
      error_of([&] {
        auto self = torch::zeros({2, 3});
        ops::add_scaled_mm_(self, a, b.narrow(1, 0, 3));
      }),
      ContainsSubstring("add_scaled_mm_: expected b to have K = 4"));
  auto expanded = torch::zeros({1, 3}).expand({2, 3});
  CHECK(error(expanded) != "");
}
