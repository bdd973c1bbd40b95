// What the tests share. The number format stands here a second time, as loops over floats written from
// docs/design.md ("Numbers") without any LibTorch operation, so that the tests do not compare the
// library with itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch_all.hpp>
#include <torch/torch.h>

#include <te_int8/operators.h>

#include "test_device.h"

namespace te_int8_test {

// ---- The truth ------------------------------------------------------------------------------------

struct ScalarCodes {
  std::vector<int8_t> codes;
  std::vector<float> scales;
};

/// amax = max|x|, scale = amax / 127, code = clamp(rint(x * (127 / amax)), -127, 127); codes 0 with
/// scale 0 where 127 / amax overflows, codes 0 with scale NaN where a value is not finite.
inline ScalarCodes quantize_by_definition(
    const std::vector<float>& x, int64_t rows, int64_t columns) {
  ScalarCodes result{std::vector<int8_t>(x.size(), 0), std::vector<float>(static_cast<size_t>(rows), 0)};
  for (int64_t row = 0; row < rows; ++row) {
    const auto begin = static_cast<size_t>(row * columns);
    const auto end = begin + static_cast<size_t>(columns);
    float amax = 0;
    bool finite = true;
    for (auto i = begin; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      amax = std::max(amax, std::fabs(x[i]));
    }
    auto& scale = result.scales[static_cast<size_t>(row)];
    const float inverse = amax > 0 ? 127.0F / amax : INFINITY;
    if (!finite) {
      scale = NAN;
    } else if (std::isfinite(inverse)) {
      scale = amax / 127.0F;
      for (auto i = begin; i < end; ++i) {
        const float rounded = std::nearbyint(x[i] * inverse);  // ties to even, the default mode
        result.codes[i] = static_cast<int8_t>(std::clamp(rounded, -127.0F, 127.0F));
      }
    }
  }
  return result;
}

inline std::vector<float> transpose(const std::vector<float>& x, int64_t rows, int64_t columns) {
  std::vector<float> result(x.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      result[static_cast<size_t>(j * rows + i)] = x[static_cast<size_t>(i * columns + j)];
    }
  }
  return result;
}

// ---- Tensors to plain values, and comparisons -----------------------------------------------------

template <typename Value, typename Scalar>
std::vector<Value> read(const at::Tensor& tensor) {
  const auto x = tensor.cpu();
  std::vector<Value> values;
  values.reserve(static_cast<size_t>(x.numel()));
  const auto* data = x.const_data_ptr<Scalar>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t offset = 0;
    for (int64_t rest = i, d = x.dim(); d-- > 0; rest /= x.size(d)) offset += rest % x.size(d) * x.stride(d);
    values.push_back(static_cast<Value>(data[offset]));
  }
  return values;
}

/// The values of a tensor of any strides, in order, each converted to float by itself.
inline std::vector<float> floats(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble: return read<float, double>(x);
    case at::kHalf: return read<float, at::Half>(x);
    case at::kBFloat16: return read<float, at::BFloat16>(x);
    default: return read<float, float>(x);
  }
}

/// Equal bit for bit, or both NaN.
inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(a, b, [](float x, float y) {
    return (std::isnan(x) && std::isnan(y)) || (x == y && std::signbit(x) == std::signbit(y));
  });
}

/// The same dtype, shape and bits; NaN equals NaN.
inline bool same(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  if (!at::isFloatingType(a.scalar_type())) return at::equal(a, b);
  const auto zeros_alike = at::signbit(a).eq(at::signbit(b)).logical_and_(a.eq(b));
  return zeros_alike.logical_or_(a.isnan().logical_and_(b.isnan())).all().item<bool>();
}

inline bool same(const te_int8::ops::Codes& a, const te_int8::ops::Codes& b) {
  return same(std::get<0>(a), std::get<0>(b)) && same(std::get<1>(a), std::get<1>(b));
}

/// |a - b| / |b| in the Frobenius norm.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const auto truth = b.detach().to(at::kDouble);
  return ((a.detach().to(at::kDouble) - truth).norm() / truth.norm()).item<double>();
}

/// The message that f raises; empty if it raises none.
template <typename Function>
std::string error_of(Function&& f) {
  try {
    std::forward<Function>(f)();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// ---- Inputs ---------------------------------------------------------------------------------------

/// Gaussian rows whose norms differ by orders of magnitude; with `special` some rows are zero, tiny,
/// huge, not finite or full of ties.
inline at::Tensor random_matrix(
    int64_t rows, int64_t columns, at::ScalarType dtype, bool special = false) {
  const auto host = at::TensorOptions(at::kCPU);  // made there, as single rows are many small operations
  auto x = at::randn({rows, columns}, host.dtype(at::kDouble))
               .mul_(at::randn({rows, 1}, host.dtype(at::kDouble)).mul_(2).exp_());
  if (!special || columns == 0) return x.to(test_device(), dtype);
  const auto kinds = at::randint(40, {rows}, host.dtype(at::kLong));
  const auto places = at::randint(columns, {rows}, host.dtype(at::kLong));
  for (int64_t i = 0; i < rows; ++i) {
    const auto kind = kinds.const_data_ptr<int64_t>()[i], any = places.const_data_ptr<int64_t>()[i];
    if (kind >= 10) continue;
    auto row = x[i];
    switch (kind) {
      case 0: row.zero_(); break;
      case 1: row.clamp_(-1, 1).mul_(1e-39); break;     // 127 / amax overflows
      case 2: row.clamp_(-2, 2).mul_(1.87e-37); break;  // around the last amax where it does not
      case 3: row.mul_(1e39).clamp_(-3.4028234e38, 3.4028234e38); break;
      case 4: row.mul_(1e39); break;  // beyond float, where it is a double
      case 5: row[any] = NAN; break;
      case 6: row[any] = INFINITY; break;
      case 7: row[any] = -INFINITY; break;
      case 8: row.mul_(50).round_().clamp_(-253, 253).div_(2)[any] = 127; break;  // ties
      default: row.fill_(-3);
    }
  }
  return x.to(test_device(), dtype);
}

inline const std::vector<at::ScalarType> kFloats{at::kFloat, at::kDouble, at::kHalf, at::kBFloat16};

/// How a matrix lies in memory.
enum class Layout { Contiguous, Transposed, Strided, Narrowed, Misaligned, EqualRows, EqualColumns };
inline constexpr int64_t kLayouts = 7;

/// The values of `matrix` in another layout; in the last two its first row or column, expanded.
inline at::Tensor lay_out(const at::Tensor& matrix, Layout layout) {
  const auto rows = matrix.size(0), columns = matrix.size(1);
  const auto buffer = [&](at::IntArrayRef sizes) { return at::empty(sizes, matrix.options()); };
  switch (layout) {
    case Layout::Contiguous: return matrix.contiguous();
    case Layout::Transposed: return buffer({columns, rows}).t().copy_(matrix);
    case Layout::Strided:
      return buffer({2 * rows, 3 * columns}).slice(0, 0, {}, 2).slice(1, 0, {}, 3).copy_(matrix);
    case Layout::Narrowed:
      return buffer({rows + 2, columns + 5}).narrow(0, 1, rows).narrow(1, 3, columns).copy_(matrix);
    case Layout::Misaligned:
      return buffer({rows * columns + 1}).narrow(0, 1, rows * columns).view({rows, columns}).copy_(matrix);
    case Layout::EqualRows: return rows > 0 ? matrix.narrow(0, 0, 1).expand({rows, columns}) : matrix;
    case Layout::EqualColumns:
      return columns > 0 ? matrix.narrow(1, 0, 1).expand({rows, columns}) : matrix;
  }
  return matrix;
}

inline at::Tensor random_codes(int64_t rows, int64_t columns) {
  return at::randint(-128, 128, {rows, columns}, at::kChar);
}

using Shape = std::pair<int64_t, int64_t>;

/// 320 different shapes: every edge up to 2 x 2, single rows and columns, primes, the neighbours of
/// powers of two, and what the sequence of primes gives.
inline std::vector<Shape> shapes() {
  std::vector<Shape> result;
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t j = 0; j < 3; ++j) result.emplace_back(i, j);
  }
  for (const int64_t n : {7, 16, 127, 128, 129, 1023, 1024, 1025, 3221}) {
    for (const int64_t few : {0, 1, 3}) {
      result.emplace_back(few, n);
      result.emplace_back(n, few);
    }
  }
  for (int64_t i = 0; result.size() < 320; ++i) result.emplace_back(3 + i % 61, 4 + i * 37 % 113);
  return result;
}

}  // namespace te_int8_test
