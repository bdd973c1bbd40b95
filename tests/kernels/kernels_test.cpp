// The kernels of kernels/ by themselves, without LibTorch, against the number format written out for the host. Small and
// quick, so that they can run under compute-sanitizer; tests/cuda_backend_test.cpp has the many shapes.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

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
        spoil(codes, scales, codes_t, scales_t);
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
        if (!runs_here(gemm, kType<T>) || gemm.windows) continue;
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
