// The kernels of kernels/ by themselves, without LibTorch, against the number format written out for the host. Small and
// quick, so that they can run under compute-sanitizer; tests/cuda_backend_test.cpp has the many shapes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "../../kernels/dequantize.h"
#include "../../kernels/gemm.h"
#include "../../kernels/linear.h"
#include "../../kernels/quantize.h"

using namespace te_int8::kernels;

namespace {

/// 90 for compute capability 9.0; 0 where there is no GPU that this build has code for.
int capability() {
  static const int found = [] {
    cudaDeviceProp device{};
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || !has_code_for_device()) return 0;
    return 10 * device.major + device.minor;
  }();
  return found;
}

int multiprocessors() {
  cudaDeviceProp device{};
  return cudaGetDeviceProperties(&device, 0) == cudaSuccess ? device.multiProcessorCount : 0;
}

#define SKIP_WITHOUT_GPU() \
  if (capability() == 0) SKIP("needs a GPU that this build has code for")

void check(cudaError_t error) {
  INFO(cudaGetErrorString(error));
  REQUIRE(error == cudaSuccess);
}

/// Values on the device, `misplaced` elements from where memory is aligned.
template <typename T>
class Device {
 public:
  explicit Device(std::size_t count, std::size_t misplaced = 0) : count_(count), misplaced_(misplaced) {
    check(cudaMalloc(&memory_, std::max<std::size_t>(1, (count + misplaced) * sizeof(T))));
    check(cudaMemset(memory_, 0x5a, std::max<std::size_t>(1, (count + misplaced) * sizeof(T))));
  }
  explicit Device(const std::vector<T>& values, std::size_t misplaced = 0) : Device(values.size(), misplaced) {
    check(cudaMemcpy(get(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(memory_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* get() const { return static_cast<T*>(memory_) + misplaced_; }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), get(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* memory_ = nullptr;
  std::size_t count_, misplaced_;
};

template <typename T>
constexpr Type kType = Type::Float;
template <>
constexpr Type kType<__half> = Type::Half;
template <>
constexpr Type kType<__nv_bfloat16> = Type::BFloat16;

template <typename T>
T rounded(float value) { return T(value); }

/// f(T()) for each type of values.
template <typename F>
void for_each_type(const F& f) {
  f(float());
  f(__half());
  f(__nv_bfloat16());
}

struct Matrix {
  int64_t rows, columns;
  std::vector<float> values;  ///< by row

  float at(int64_t row, int64_t column) const { return values[static_cast<std::size_t>(row * columns + column)]; }
  Matrix transposed() const {
    Matrix result{columns, rows, std::vector<float>(values.size())};
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) result.values[static_cast<std::size_t>(j * rows + i)] = at(i, j);
    }
    return result;
  }
};

/// Normally distributed values that T holds; with `strange`, a row of zeros, one with NaN and one with an infinity, where
/// there are as many rows.
template <typename T>
Matrix random_matrix(int64_t rows, int64_t columns, bool strange) {
  static std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  Matrix result{rows, columns, std::vector<float>(static_cast<std::size_t>(rows * columns))};
  for (auto& value : result.values) value = static_cast<float>(rounded<T>(normal(generator)));
  const auto row = [&](int64_t i) { return result.values.begin() + i * columns; };
  if (strange && columns > 0) {
    if (rows > 3) std::fill(row(1), row(2), 0.0F);
    if (rows > 4) *(row(2) + columns / 2) = std::numeric_limits<float>::quiet_NaN();
    if (rows > 5) *(row(4) + columns - 1) = -std::numeric_limits<float>::infinity();
  }
  return result;
}

template <typename T>
std::vector<T> as(const Matrix& matrix) {
  std::vector<T> result;
  for (const float value : matrix.values) result.push_back(rounded<T>(value));
  return result;
}

struct Codes {
  std::vector<int8_t> codes;
  std::vector<float> scales;
};

/// The number format of te_int8/number_format.h, by row.
Codes codes_of(const Matrix& x) {
  Codes result;
  for (int64_t i = 0; i < x.rows; ++i) {
    float amax = 0;
    bool finite = true;
    for (int64_t j = 0; j < x.columns; ++j) {
      finite = finite && std::isfinite(x.at(i, j));
      amax = std::max(amax, std::fabs(x.at(i, j)));
    }
    const float inverse = finite ? 127.0F / amax : 0.0F;
    const bool codes = finite && std::isfinite(inverse);
    for (int64_t j = 0; j < x.columns; ++j) {
      const volatile float scaled = codes ? x.at(i, j) * inverse : 0.0F;  // no fused multiply-add
      result.codes.push_back(static_cast<int8_t>(std::clamp(std::nearbyint(scaled), -127.0F, 127.0F)));
    }
    result.scales.push_back(finite ? (codes ? amax / 127.0F : 0.0F) : std::numeric_limits<float>::quiet_NaN());
  }
  return result;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(a, b, [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}
void require_same(const Device<int8_t>& codes, const Device<float>& scales, const Codes& expected) {
  REQUIRE(codes.read() == expected.codes);
  REQUIRE(same(scales.read(), expected.scales));
}

std::size_t size_of(int64_t rows, int64_t columns) { return static_cast<std::size_t>(rows * columns); }

std::vector<int8_t> random_codes(int64_t count) {
  static std::mt19937 generator(11);
  std::uniform_int_distribution<int> any(-127, 127);
  std::vector<int8_t> result(static_cast<std::size_t>(count));
  for (auto& code : result) code = static_cast<int8_t>(any(generator));
  return result;
}

std::vector<float> random_scales(int64_t count) {
  static std::mt19937 generator(13);
  std::uniform_real_distribution<float> any(1e-3F, 2e-3F);
  std::vector<float> result(static_cast<std::size_t>(count));
  for (auto& scale : result) scale = any(generator);
  return result;
}

/// a [m,k] x b [n,k].
std::vector<int32_t> sums_of(const std::vector<int8_t>& a, const std::vector<int8_t>& b, int64_t m, int64_t n, int64_t k) {
  std::vector<int32_t> result;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      int32_t sum = 0;
      for (int64_t d = 0; d < k; ++d) {
        sum += int32_t{a[static_cast<std::size_t>(i * k + d)]} * b[static_cast<std::size_t>(j * k + d)];
      }
      result.push_back(sum);
    }
  }
  return result;
}

/// Of scales [m], [n] and a bias [n], or none, rounded to T.
template <typename T>
std::vector<float> formula(
    const std::vector<int32_t>& sums, const std::vector<float>& a_scales, const std::vector<float>& b_scales,
    const std::vector<float>& bias) {
  std::vector<float> result;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const std::size_t row = i / b_scales.size(), column = i % b_scales.size();
    const volatile float scaled = static_cast<float>(sums[i]) * a_scales[row];
    const float value = std::fma(b_scales[column], scaled, bias.empty() ? -0.0F : bias[column]);
    result.push_back(static_cast<float>(rounded<T>(value)));
  }
  return result;
}

template <typename T>
std::vector<float> floats(const std::vector<T>& values) {
  std::vector<float> result;
  for (const T value : values) result.push_back(static_cast<float>(value));
  return result;
}

const std::vector<std::pair<int64_t, int64_t>> kShapes{
    {0, 5},   {1, 1},     {6, 16},    {7, 100},    {130, 65},   {300, 257},   {129, 128},  {6, 1024},  {64, 2064},
    {5, 4096}, {6, 8208}, {6, 16400}, {2, 32'768}, {6, 65'552}, {1000, 48},   {2053, 3}};

}  // namespace

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
        const Device<uint8_t> workspace(quantize_columns_workspace(columns));
        const auto by_row = codes_of(matrix), by_column = codes_of(matrix.transposed());

        check(quantize_rows(kType<T>, x.get(), rows, columns, codes.get(), scales.get(), nullptr));
        require_same(codes, scales, by_row);
        check(quantize_columns(
            kType<T>, x.get(), rows, columns, workspace.get(), codes_t.get(), scales_t.get(), nullptr));
        require_same(codes_t, scales_t, by_column);
        check(quantize_rows_and_columns(
            kType<T>, x.get(), rows, columns, multiprocessors(), workspace.get(), codes.get(), scales.get(),
            codes_t.get(), scales_t.get(), nullptr));
        require_same(codes, scales, by_row);
        require_same(codes_t, scales_t, by_column);

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
      const Device<uint8_t> workspace(quantize_columns_workspace(columns));
      check(quantize_rows_and_columns(
          kType<T>, x.get(), rows, columns, multiprocessors(), workspace.get(), codes.get(), scales.get(),
          codes_t.get(), scales_t.get(), nullptr));
      require_same(codes, scales, codes_of(matrix));
      require_same(codes_t, scales_t, codes_of(matrix.transposed()));
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

TEST_CASE("kernels: every product of codes that runs on this GPU", "[kernels]") {
  SKIP_WITHOUT_GPU();
  int launched = 0;
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
        CAPTURE(gemm.name, gemm.along_m, gemm.swizzle, m, n, k, sizeof(T));
        check(gemm.launch(product, gemm, multiprocessors(), nullptr));
        REQUIRE(same(floats(out.read()), expected));
        ++launched;
      }
      check(dequantize(all_sums.get(), n, m, n, epilogue, kType<T>, out.get(), nullptr));
      REQUIRE(same(floats(out.read()), expected));
    });
  }
  CHECK(launched > 0);
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
