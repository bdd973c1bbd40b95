// The kernels of kernels/ by themselves, without LibTorch, against the number format written out for the host. Small and
// quick, so that they can run under compute-sanitizer; tests/cuda_backend_test.cpp has the many shapes.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "../../kernels/activations.h"
#include "../../kernels/gemm.h"
#include "../../kernels/linear.h"
#include "../../kernels/quantize.h"
#include "host_reference.h"

using namespace te_int8_kernel_test;

TEST_CASE("kernels: codes by row, of the whole and by column", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (const auto& [rows, columns] : kShapes) {
      for (const std::size_t misplaced : {0, 1}) {
        CAPTURE(rows, columns, misplaced, sizeof(T));
        const auto matrix = random_matrix<T>(rows, columns, /*strange=*/true);
        const Device<T> x(as<T>(matrix), misplaced);
        const Device<int8_t> codes(size_of(rows, columns), misplaced), codes_t(size_of(rows, columns), misplaced);
        const Device<float> scales(size_of(rows, 1)), scales_t(size_of(columns, 1)), one(1);
        const Device<uint8_t> workspace(quantize_rows_and_columns_workspace(rows, columns, true));
        const Device<float> sums(size_of(columns, 1));
        const auto by_row = codes_of(matrix), by_column = codes_of(matrix.transposed());

        check(quantize_rows(kType<T>, x.get(), rows, columns, codes.get(), scales.get(), nullptr));
        require_same(codes, scales, by_row);
        check(quantize_columns(
            kType<T>, x.get(), rows, columns, workspace.get(), codes_t.get(), scales_t.get(), nullptr));
        require_same(codes_t, scales_t, by_column);
        check(quantize_rows_and_columns(
            kType<T>, x.get(), rows, columns, multiprocessors(), workspace.get(), codes.get(), scales.get(),
            codes_t.get(), scales_t.get(), sums.get(), nullptr));
        require_same(codes, scales, by_row);
        require_same(codes_t, scales_t, by_column);
        require_sums_of_columns(sums, matrix);

        const auto whole = random_matrix<T>(rows, columns, /*strange=*/false);
        const Device<T> values(as<T>(whole), misplaced);
        check(quantize_tensor(kType<T>, values.get(), rows * columns, codes.get(), one.get(), nullptr));
        require_same(codes, one, codes_of({1, rows * columns, whole.values}));
      }
    }
  });
}

TEST_CASE("kernels: codes by row and by column at once, of a matrix large enough for it", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (const int64_t columns : {2048, 4080, sizeof(T) == 4 ? 8192 : 16384}) {
      const int64_t rows = (32 << 20) / (columns * static_cast<int64_t>(sizeof(T))) + 3;
      CAPTURE(rows, columns, sizeof(T));
      const auto matrix = random_matrix<T>(rows, columns, /*strange=*/true);
      const Device<T> x(as<T>(matrix));
      const Device<int8_t> codes(size_of(rows, columns)), codes_t(size_of(rows, columns));
      const Device<float> scales(size_of(rows, 1)), scales_t(size_of(columns, 1));
      const Device<uint8_t> workspace(quantize_rows_and_columns_workspace(rows, columns, true));
      const auto by_row = codes_of(matrix), by_column = codes_of(matrix.transposed());
      const Device<float> sums(size_of(columns, 1));
      for (const bool with_sums : {false, true}) {
        check(quantize_rows_and_columns(
            kType<T>, x.get(), rows, columns, multiprocessors(), workspace.get(), codes.get(), scales.get(),
            codes_t.get(), scales_t.get(), with_sums ? sums.get() : nullptr, nullptr));
        require_same(codes, scales, by_row);
        require_same(codes_t, scales_t, by_column);
      }
      require_sums_of_columns(sums, matrix);
    }
  });
}

TEST_CASE("kernels: codes of codes by column", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for (const auto& [rows, columns] : kShapes) {
    for (const bool one_scale : {false, true}) {
      CAPTURE(rows, columns, one_scale);
      const auto values = random_codes(rows * columns);
      auto scales = random_scales(one_scale ? 1 : rows);
      if (!one_scale && rows > 100) scales[77] = std::numeric_limits<float>::quiet_NaN();
      Matrix products{rows, columns, {}};
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::size_t row = one_scale ? 0 : i / static_cast<std::size_t>(columns);
        products.values.push_back(static_cast<float>(values[i]) * scales[row]);
      }
      const Device<int8_t> codes(values), codes_t(values.size());
      const Device<float> row_scales(scales), scales_t(size_of(columns, 1));
      const Device<uint8_t> workspace(quantize_columns_workspace(columns));
      check(requantize_columns(
          codes.get(), row_scales.get(), one_scale, rows, columns, workspace.get(), codes_t.get(), scales_t.get(), nullptr));
      require_same(codes_t, scales_t, codes_of(products.transposed()));
    }
  }
}

TEST_CASE("kernels: values of codes", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (const auto& [rows, columns] : kShapes) {
      for (const bool one_scale : {false, true}) {
        for (const std::size_t misplaced : {0, 1}) {
          CAPTURE(rows, columns, one_scale, misplaced, sizeof(T));
          const auto values = random_codes(rows * columns);
          auto scales = random_scales(one_scale ? 1 : rows);
          if (rows > 2 && !one_scale) scales[2] = std::numeric_limits<float>::quiet_NaN();
          std::vector<float> expected;
          for (std::size_t i = 0; i < values.size(); ++i) {
            const std::size_t row = one_scale ? 0 : i / static_cast<std::size_t>(columns);
            expected.push_back(static_cast<float>(rounded<T>(static_cast<float>(values[i]) * scales[row])));
          }
          const Device<int8_t> codes(values, misplaced);
          const Device<float> of_rows(scales);
          const Device<T> out(values.size(), misplaced);
          check(dequantize_rows(codes.get(), of_rows.get(), one_scale, rows, columns, kType<T>, out.get(), nullptr));
          REQUIRE(same(floats(out.read()), expected));
        }
      }
    }
  });
}

TEST_CASE("kernels: activations with their codes, and codes made again", "[kernels]") {
  SKIP_WITHOUT_GPU();
  const auto exact = [](Activation f, double x) {
    switch (f) {
      case Activation::Gelu: return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
      case Activation::GeluTanh:
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
      case Activation::Relu: return std::max(x, 0.0);
      case Activation::Silu: return x / (1 + std::exp(-x));
    }
    return 0.0;
  };
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 16}, {1, 16}, {7, 48}, {130, 528}, {9, 1040}, {5, 8192}, {3, 16384}, {2, sizeof(T) == 4 ? 16000 : kType<T> == Type::Half ? 24576 : 32768}}) {
      REQUIRE(fits_activations(kType<T>, columns));
      for (const auto f : {Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu}) {
        const int sms = static_cast<int>(f) % 2 == 0 ? multiprocessors() : 1;  // few blocks take several rows each
        CAPTURE(rows, columns, sizeof(T), static_cast<int>(f));
        const auto matrix = random_matrix<T>(rows, columns, /*strange=*/true);
        const Device<T> x(as<T>(matrix)), y(size_of(rows, columns));
        const Device<int8_t> codes(size_of(rows, columns)), again(size_of(rows, columns));
        const Device<float> scales(size_of(rows, 1)), inverses(size_of(rows, 1));
        check(activate(f, kType<T>, x.get(), rows, columns, sms, {y.get(), codes.get(), scales.get(), inverses.get()}, nullptr));
        const Matrix values{rows, columns, floats(y.read())};
        bool close = true;
        for (std::size_t i = 0; i < values.values.size(); ++i) {
          const double expected = exact(f, matrix.values[i]);
          const double bound = 1e-6 + std::fabs(expected) * (sizeof(T) == 4 ? 1e-5 : 5e-3);
          close = close && (!std::isfinite(expected) || std::fabs(values.values[i] - expected) <= bound);
        }
        REQUIRE(close);
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

TEST_CASE("kernels: every product of codes that runs on this GPU", "[kernels]") {
  SKIP_WITHOUT_GPU();
  int launched = 0, accumulated = 0;
  for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 64, 64}, {13, 264, 144}, {40, 128, 2064}, {64, 1032, 272}, {130, 264, 400}, {300, 520, 128}}) {
    const auto a = random_codes(m * k), b = random_codes(n * k);
    const auto a_scales = random_scales(m), b_scales = random_scales(n), bias = random_scales(n);
    const auto sums = sums_of(a, b, m, n, k);
    const Device<int8_t> left(a), right(b);
    const Device<float> of_rows(a_scales), of_columns(b_scales), added(bias);
    const Device<int32_t> all_sums(sums);
    for_each_type([&](auto t) {
      using T = decltype(t);
      const Device<T> out(size_of(m, n));
      const Epilogue epilogue{of_rows.get(), 1, of_columns.get(), 1, added.get(), Type::Float};
      const auto expected = formula<T>(sums, a_scales, b_scales, bias);
      const Product product{left.get(), right.get(), m, n, k, epilogue, kType<T>, out.get()};
      REQUIRE(fits_gemms(product));
      for (const auto& gemm : gemms()) {
        if (gemm.type != kType<T> || gemm.oldest > capability() || (gemm.oldest == 90 && capability() != 90)) continue;
        if (m < gemm.fewest_rows || m > gemm.most_rows) continue;
        CAPTURE(gemm.name, gemm.along_m, gemm.swizzle, gemm.accumulates, m, n, k, sizeof(T));
        if (gemm.accumulates) {
          const auto before = as<T>(random_matrix<T>(m, n, /*strange=*/false));
          const Device<T> sum(before);
          auto into = product;
          into.out = sum.get();
          into.epilogue.bias = nullptr;
          into.accumulate = true;
          check(gemm.launch(into, gemm, multiprocessors(), nullptr));
          REQUIRE(same(floats(sum.read()), formula<T>(sums, a_scales, b_scales, floats(before))));
          ++accumulated;
          continue;
        }
        check(gemm.launch(product, gemm, multiprocessors(), nullptr));
        REQUIRE(same(floats(out.read()), expected));
        ++launched;
      }
      check(dequantize(all_sums.get(), n, m, n, epilogue, kType<T>, out.get(), nullptr));
      REQUIRE(same(floats(out.read()), expected));
    });
  }
  CHECK(launched > 0);
  CHECK(accumulated > 0);
}

TEST_CASE("kernels: a linear layer of few rows", "[kernels]") {
  SKIP_WITHOUT_GPU();
  if (capability() < 80 || capability() > 90) SKIP("for compute capability 8.0 to 9.0");
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (int64_t m = 1; m <= kFewRows; ++m) {
      for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 16}, {9, 144}, {1065, 128}, {100, sizeof(T) == 4 ? 2048 : 4096}, {4300, 48}}) {
        CAPTURE(m, n, k, sizeof(T));
        const auto matrix = random_matrix<T>(m, k, /*strange=*/true);
        const auto codes = codes_of(matrix);
        const auto b = random_codes(n * k);
        const auto b_scales = random_scales(n);
        const bool with_bias = (m + n) % 2 == 0;
        const auto bias = with_bias ? random_scales(n) : std::vector<float>();
        const Device<T> x(as<T>(matrix)), out(size_of(m, n));
        const Device<int8_t> weights(b);
        const Device<float> scales(b_scales), added(bias);
        const Epilogue epilogue{nullptr, 0, scales.get(), 1, with_bias ? added.get() : nullptr, Type::Float};
        const Linear linear{x.get(), kType<T>, weights.get(), m, n, k, epilogue, kType<T>, out.get()};
        REQUIRE(fits_linear_of_few_rows(linear));
        check(linear_of_few_rows(linear, multiprocessors(), nullptr));
        REQUIRE(same(floats(out.read()), formula<T>(sums_of(codes.codes, b, m, n, k), codes.scales, b_scales, bias)));
      }
    }
  });
}
