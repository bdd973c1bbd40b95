// Activations and layer normalization with codes, and gradients of activations.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "../../kernels/activations.h"
#include "../../kernels/quantize.h"
#include "host_reference.h"

using namespace te_int8_kernel_test;

namespace {

constexpr auto kActivations = {Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu};

double exact(Activation f, double x) {
  switch (f) {
    case Activation::Gelu: return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::GeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::Relu: return std::max(x, 0.0);
    case Activation::Silu: return x / (1 + std::exp(-x));
  }
  return 0.0;
}

/// By a difference, of Relu away from its corner.
double exact_derivative(Activation f, double x) {
  if (f == Activation::Relu) return x <= 0 ? 0 : 1;  // of NaN as well
  constexpr double kStep = 1e-4;
  return (exact(f, x + kStep) - exact(f, x - kStep)) / (2 * kStep);
}

/// Whether they are within `absolute` and `relative` of what is expected of them, where that is finite.
bool close(const std::vector<float>& values, const std::vector<double>& expected, double relative, double absolute) {
  return std::ranges::equal(values, expected, [&](double value, double wanted) {
    return !std::isfinite(wanted) || std::fabs(value - wanted) <= absolute + std::fabs(wanted) * relative;
  });
}

}  // namespace

TEST_CASE("kernels: activations with their codes, and codes made again", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    const int64_t longest = sizeof(T) == 4 ? 16000 : kType<T> == Type::Half ? 24576 : 32768;
    for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 16}, {1, 16}, {7, 48}, {130, 528}, {9, 1040}, {5, 8192}, {3, 16384}, {2, longest}}) {
      REQUIRE(fits_activations(kType<T>, columns));
      for (const auto f : kActivations) {
        const int sms = static_cast<int>(f) % 2 == 0 ? multiprocessors() : 1;  // few blocks take several rows each
        CAPTURE(rows, columns, sizeof(T), static_cast<int>(f));
        const auto matrix = random_matrix<T>(rows, columns, /*strange=*/true);
        const Device<T> x(as<T>(matrix)), y(size_of(rows, columns));
        const Device<int8_t> codes(size_of(rows, columns)), again(size_of(rows, columns));
        const Device<float> scales(size_of(rows, 1)), inverses(size_of(rows, 1));
        check(activate(f, kType<T>, x.get(), rows, columns, sms, {y.get(), codes.get(), scales.get(), inverses.get()}, nullptr));
        const Matrix values{rows, columns, floats(y.read())};
        std::vector<double> expected_values;
        for (const double value : matrix.values) expected_values.push_back(exact(f, value));
        REQUIRE(close(values.values, expected_values, sizeof(T) == 4 ? 1e-5 : 5e-3, 1e-6));
        require_same(codes, scales, codes_of(values));
        check(activate_again(
            f, kType<T>, x.get(), rows, columns, sms, {nullptr, again.get(), scales.get(), inverses.get()}, nullptr));
        require_same(again, scales, codes_of(values));
        check(activate_again(f, kType<T>, x.get(), rows, columns, sms, {y.get(), nullptr, scales.get(), inverses.get()}, nullptr));
        REQUIRE(same(floats(y.read()), values_of<T>(codes_of(values), columns)));

        // Of what is held as codes: as if of their values.
        const Device<int8_t> x_codes(size_of(rows, columns));
        const Device<float> x_scales(size_of(rows, 1));
        check(quantize_rows(kType<T>, x.get(), rows, columns, x_codes.get(), x_scales.get(), nullptr));
        check(dequantize_rows(x_codes.get(), x_scales.get(), false, rows, columns, kType<T>, x.get(), nullptr));
        check(activate(f, kType<T>, x.get(), rows, columns, sms, {y.get(), codes.get(), scales.get(), inverses.get()}, nullptr));
        const Codes expected{codes.read(), scales.read()};
        const auto of_codes = [&](const Made& made) {
          check(activate_codes_again(f, kType<T>, x_codes.get(), x_scales.get(), rows, columns, sms, made, nullptr));
        };
        of_codes({nullptr, again.get(), scales.get(), inverses.get()});
        require_same(again, scales, expected);
        of_codes({y.get(), nullptr, scales.get(), inverses.get()});
        REQUIRE(same(floats(y.read()), values_of<T>(expected, columns)));
      }
    }
  });
  for (const int64_t width : {0, 8, 17, 65536}) CHECK(!fits_activations(Type::BFloat16, width));
}

TEST_CASE("kernels: codes of functions of codes saturate", "[kernels]") {
  SKIP_WITHOUT_GPU();
  // What the codes of x stand for, of a step of 100 / 127, gives more than any x did.
  Matrix matrix{1, 64, std::vector<float>(64, 0.3F)};
  matrix.values[0] = -100;
  matrix.values[1] = 1.19F;
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (const auto f : kActivations) {
      CAPTURE(sizeof(T), static_cast<int>(f));
      const Device<T> x(as<T>(matrix)), y(64);
      const Device<int8_t> codes(64), x_codes(64);
      const Device<float> scales(1), inverses(1), x_scales(1);
      check(activate(f, kType<T>, x.get(), 1, 64, 1, {y.get(), codes.get(), scales.get(), inverses.get()}, nullptr));
      check(quantize_rows(kType<T>, x.get(), 1, 64, x_codes.get(), x_scales.get(), nullptr));
      const Made made{nullptr, codes.get(), scales.get(), inverses.get()};
      check(activate_codes_again(f, kType<T>, x_codes.get(), x_scales.get(), 1, 64, 1, made, nullptr));
      CHECK(values_of<T>({x_codes.read(), x_scales.read()}, 64)[1] > 1.5F);
      CHECK(codes.read()[1] == 127);
    }
  });
}

TEST_CASE("kernels: gradients of activations with their codes", "[kernels]") {
  SKIP_WITHOUT_GPU();
  using T = __nv_bfloat16;
  for (const auto& [rows, columns, sms] : std::vector<std::tuple<int64_t, int64_t, int>>{
           {1, 1024, 1}, {16, 1040, 1}, {37, 2048, 2}, {300, 5120, 3}, {130, 16384, 5}}) {
    for (const auto f : kActivations) {
      for (const bool of_codes : {false, true}) {
        CAPTURE(rows, columns, static_cast<int>(f), of_codes);
        auto x_matrix = random_matrix<T>(rows, columns, /*strange=*/true);
        for (std::size_t i = 0; i < x_matrix.values.size(); i += 97) x_matrix.values[i] *= 64;  // beyond any table
        const auto dy_matrix = random_matrix<T>(rows, columns, /*strange=*/true);
        const Device<T> x(as<T>(x_matrix)), dx(as<T>(dy_matrix)), dx_again(as<T>(dy_matrix));
        const Device<int8_t> codes(size_of(rows, columns)), x_codes(size_of(rows, columns)), codes_t(size_of(rows, columns));
        const Device<float> scales(size_of(rows, 1)), x_scales(size_of(rows, 1)), scales_t(size_of(columns, 1));
        const Device<float> sums(size_of(columns, 1)), expected_sums(size_of(columns, 1));
        if (of_codes) {
          check(quantize_rows(kType<T>, x.get(), rows, columns, x_codes.get(), x_scales.get(), nullptr));
          check(dequantize_rows(x_codes.get(), x_scales.get(), false, rows, columns, kType<T>, x.get(), nullptr));
        }
        const auto values = floats(x.read());
        ActivationGradient gradient{
            f, of_codes ? nullptr : x.get(), of_codes ? x_codes.get() : nullptr, x_scales.get(), dx.get(), rows, columns,
            codes.get(), scales.get()};
        const Device<uint8_t> workspace(activation_gradient_workspace(rows, columns));
        check(activation_gradient(gradient, sms, workspace.get(), sums.get(), nullptr));
        const Matrix made{rows, columns, floats(dx.read())};
        std::vector<double> expected;
        for (std::size_t i = 0; i < values.size(); ++i) {
          expected.push_back(dy_matrix.values[i] * exact_derivative(f, values[i]));
        }
        REQUIRE(close(made.values, expected, 5e-3, 1e-5));
        require_same(codes, scales, codes_of(made));
        require_sums_of_columns(sums, made);
        const Device<uint8_t> for_sums(column_sums_workspace(rows, columns));
        check(column_sums(kType<T>, dx.get(), rows, columns, for_sums.get(), expected_sums.get(), nullptr));
        REQUIRE(same(sums.read(), expected_sums.read()));

        const Device<uint32_t> amax(size_of(columns, 1));
        spoil(codes, scales, sums);
        gradient.dy = dx_again.get();
        check(activation_gradient_finding_maxima(gradient, sms, amax.get(), nullptr));
        REQUIRE(same(floats(dx_again.read()), made.values));
        require_same(codes, scales, codes_of(made));
        for (float* with_sums : {static_cast<float*>(nullptr), sums.get()}) {
          spoil(codes_t, scales_t);
          check(quantize_columns_with_maxima(
              kType<T>, dx_again.get(), rows, columns, amax.get(), for_sums.get(), codes_t.get(), scales_t.get(), with_sums,
              nullptr));
          require_same(codes_t, scales_t, codes_of(made.transposed()));
        }
        REQUIRE(same(sums.read(), expected_sums.read()));
      }
    }
  }
  CHECK(fits_activation_gradient(Type::BFloat16, 2048, 16384, 132));
  CHECK(!fits_activation_gradient(Type::BFloat16, 512, 16384, 132));  // work for a quarter of the GPU
  CHECK(!fits_activation_gradient(Type::Half, 8192, 16384, 132));
  for (const int64_t width : {2048, 4104, 16400}) CHECK(!fits_activation_gradient(Type::BFloat16, 8192, width, 132));
}

TEST_CASE("kernels: codes of what a layer normalization gave", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (const auto& [rows, columns] :
         std::vector<std::pair<int64_t, int64_t>>{{0, 16}, {7, 48}, {130, 528}, {9, 1040}, {5, 8192}, {3, 16384}}) {
      for (const bool with_gamma : {false, true}) {
        for (const bool with_beta : {false, true}) {
          CAPTURE(rows, columns, sizeof(T), with_gamma, with_beta);
          const auto matrix = random_matrix<T>(rows, columns, /*strange=*/true);
          const auto gamma = random_matrix<T>(1, columns, false), beta = random_matrix<T>(1, columns, false);
          std::vector<float> mean, rstd;
          Matrix expected{rows, columns, {}};
          for (int64_t i = 0; i < rows; ++i) {
            mean.push_back(0.01F * static_cast<float>(i));
            rstd.push_back(1.0F + 0.1F * static_cast<float>(i));
            for (int64_t j = 0; j < columns; ++j) {
              const volatile float centered = matrix.at(i, j) - mean.back();
              const volatile float normal = rstd.back() * centered;
              const float g = gamma.at(0, j), b = beta.at(0, j);
              const volatile float scaled = g * normal;
              const float value = with_gamma ? (with_beta ? std::fma(g, normal, b) : static_cast<float>(scaled))
                                             : (with_beta ? std::fma(rstd.back(), centered, b) : static_cast<float>(normal));
              expected.values.push_back(static_cast<float>(rounded<T>(value)));
            }
          }
          const Device<T> x(as<T>(matrix)), gammas(as<T>(gamma)), betas(as<T>(beta));
          const Device<float> means(mean), rstds(rstd), scales(size_of(rows, 1));
          const Device<int8_t> codes(size_of(rows, columns));
          const LayerNorm norm{
              kType<T>, x.get(), means.get(), rstds.get(), with_gamma ? gammas.get() : nullptr,
              with_beta ? betas.get() : nullptr, rows, columns};
          check(layer_norm(norm, {nullptr, codes.get(), scales.get()}, nullptr));
          require_same(codes, scales, codes_of(expected));
          const Device<T> y(size_of(rows, columns));
          check(layer_norm(norm, {y.get(), nullptr, nullptr}, nullptr));
          REQUIRE(same(floats(y.read()), values_of<T>(codes_of(expected), columns)));
        }
      }
    }
  });
}
