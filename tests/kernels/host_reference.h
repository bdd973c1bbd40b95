// The number format and the epilogue's formula written out for the host, and memory on the device to compare them with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "../../kernels/dequantize.h"
#include "../../kernels/gemm.h"
#include "../../kernels/types.h"

namespace te_int8_kernel_test {

using namespace te_int8::kernels;

/// 90 for compute capability 9.0; 0 where there is no GPU that this build has code for.
inline int capability() {
  static const int found = [] {
    cudaDeviceProp device{};
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || !has_code_for_device()) return 0;
    return 10 * device.major + device.minor;
  }();
  return found;
}

inline int multiprocessors() {
  cudaDeviceProp device{};
  return cudaGetDeviceProperties(&device, 0) == cudaSuccess ? device.multiProcessorCount : 0;
}

#define SKIP_WITHOUT_GPU() \
  if (capability() == 0) SKIP("needs a GPU that this build has code for")

inline void check(cudaError_t error) {
  INFO(cudaGetErrorString(error));
  REQUIRE(error == cudaSuccess);
}

/// Whether a kernel with results of this type runs on this GPU.
inline bool runs_here(const Gemm& gemm, Type type) {
  return gemm.type == type && gemm.oldest <= capability() && (gemm.oldest != 90 || capability() == 90);
}

/// Values on the device, `misplaced` elements from where memory is aligned.
template <typename T>
class Device {
 public:
  explicit Device(std::size_t count, std::size_t misplaced = 0) : count_(count), misplaced_(misplaced) {
    check(cudaMalloc(&memory_, bytes()));
    spoil();
  }
  explicit Device(const std::vector<T>& values, std::size_t misplaced = 0) : Device(values.size(), misplaced) {
    check(cudaMemcpy(get(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(memory_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* get() const { return static_cast<T*>(memory_) + misplaced_; }
  /// Puts what no test expects in the place of all values.
  void spoil() const { check(cudaMemset(memory_, 0x5a, bytes())); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), get(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::size_t bytes() const { return std::max<std::size_t>(1, (count_ + misplaced_) * sizeof(T)); }

  void* memory_ = nullptr;
  std::size_t count_, misplaced_;
};

template <typename... T>
void spoil(const Device<T>&... results) {
  (results.spoil(), ...);
}

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
inline Codes codes_of(const Matrix& x) {
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

/// What codes by row stand for, rounded to T.
template <typename T>
std::vector<float> values_of(const Codes& codes, int64_t columns) {
  std::vector<float> result;
  for (std::size_t i = 0; i < codes.codes.size(); ++i) {
    const float value = static_cast<float>(codes.codes[i]) * codes.scales[i / static_cast<std::size_t>(columns)];
    result.push_back(static_cast<float>(rounded<T>(value)));
  }
  return result;
}

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(a, b, [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}
inline void require_same(const Device<int8_t>& codes, const Device<float>& scales, const Codes& expected) {
  REQUIRE(codes.read() == expected.codes);
  REQUIRE(same(scales.read(), expected.scales));
}

/// fp32 sums in any order: each within the rounding of its partial sums, and not finite where a value is not.
inline void require_sums_of_columns(const Device<float>& sums, const Matrix& x) {
  const auto found = sums.read();
  bool all = true;
  for (int64_t j = 0; j < x.columns; ++j) {
    double sum = 0, magnitudes = 0;
    for (int64_t i = 0; i < x.rows; ++i) {
      sum += x.at(i, j);
      magnitudes += std::fabs(x.at(i, j));
    }
    const double error = std::fabs(found[static_cast<std::size_t>(j)] - sum);
    const double bound = magnitudes * static_cast<double>(x.rows) * 0x1p-24;
    all = all && (std::isfinite(sum) ? error <= bound : !std::isfinite(found[static_cast<std::size_t>(j)]));
  }
  REQUIRE(all);
}

inline std::size_t size_of(int64_t rows, int64_t columns) { return static_cast<std::size_t>(rows * columns); }

inline std::vector<int8_t> random_codes(int64_t count) {
  static std::mt19937 generator(11);
  std::uniform_int_distribution<int> any(-127, 127);
  std::vector<int8_t> result(static_cast<std::size_t>(count));
  for (auto& code : result) code = static_cast<int8_t>(any(generator));
  return result;
}

inline std::vector<float> random_scales(int64_t count) {
  static std::mt19937 generator(13);
  std::uniform_real_distribution<float> any(1e-3F, 2e-3F);
  std::vector<float> result(static_cast<std::size_t>(count));
  for (auto& scale : result) scale = any(generator);
  return result;
}

/// a [m,k] x b [n,k].
inline std::vector<int32_t> sums_of(const std::vector<int8_t>& a, const std::vector<int8_t>& b, int64_t m, int64_t n, int64_t k) {
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

/// Of scales [m], [n] and what is added, a bias [n], a matrix [m, n] or nothing, rounded to T.
template <typename T>
std::vector<float> formula(
    const std::vector<int32_t>& sums, const std::vector<float>& a_scales, const std::vector<float>& b_scales,
    const std::vector<float>& added) {
  std::vector<float> result;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const std::size_t row = i / b_scales.size(), column = i % b_scales.size();
    const volatile float scaled = static_cast<float>(sums[i]) * a_scales[row];
    const float addend = added.empty() ? -0.0F : added[added.size() == sums.size() ? i : column];
    const float value = std::fma(b_scales[column], scaled, addend);
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

inline const std::vector<std::pair<int64_t, int64_t>> kShapes{
    {0, 5},   {1, 1},     {6, 16},    {7, 100},    {130, 65},   {300, 257},   {129, 128},  {6, 1024},  {64, 2064},
    {5, 4096}, {6, 8208}, {6, 16400}, {2, 32'768}, {6, 65'552}, {1000, 48},   {2053, 3}};

}  // namespace te_int8_kernel_test
