// A convolution's geometry, and what te_int8::scaled_convolution demands of its arguments.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include <torch/types.h>

#include <te_int8/detail/checks.h>

namespace te_int8::inline v0::detail {

/// How a window goes over the input: one value for each of 1 to 3 spatial dimensions.
struct ConvolutionGeometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups = 1;

  /// How many positions a window of `window` values has in a dimension of `size` values; 0: it does not fit.
  int64_t positions(std::size_t dimension, int64_t size, int64_t window) const {
    const auto room = size + 2 * padding[dimension] - dilation[dimension] * (window - 1) - 1;
    return room < 0 ? 0 : room / stride[dimension] + 1;
  }
  /// [N,O,*] for x [N,C,*] and weight [O,C/groups,*].
  std::vector<int64_t> result_sizes(at::IntArrayRef x, at::IntArrayRef weight) const {
    std::vector<int64_t> sizes{x[0], weight[0]};
    for (std::size_t i = 0; i < stride.size(); ++i) sizes.push_back(positions(i, x[i + 2], weight[i + 2]));
    return sizes;
  }
};

/// [N,C,*] -> [N,*,C].
inline std::vector<int64_t> channels_last_sizes(at::IntArrayRef sizes) {
  auto last = sizes.vec();
  std::rotate(last.begin() + 1, last.begin() + 2, last.end());
  return last;
}

/// `values` of 1 to 3 spatial dimensions as those of three, of which the first have `otherwise`.
inline std::array<int64_t, 3> in_three_dimensions(at::IntArrayRef values, int64_t otherwise) {
  std::array<int64_t, 3> result;
  result.fill(otherwise);
  std::copy(values.begin(), values.end(), result.end() - static_cast<std::ptrdiff_t>(values.size()));
  return result;
}

/// Returns the dtype of the result.
inline at::ScalarType check_scaled_convolution(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias, const ConvolutionGeometry& geometry,
    std::optional<at::ScalarType> out_dtype) {
  constexpr auto op = "scaled_convolution";
  check_int8(op, "a", a);
  check_int8(op, "b", b);
  TORCH_CHECK(
      a.dim() >= 3 && a.dim() <= 5, "te_int8::scaled_convolution: expected a [N,C,*] with 1 to 3 spatial dimensions, got shape ",
      a.sizes());
  check_dim(op, "b", b, a.dim());
  const auto spatial = static_cast<std::size_t>(a.dim() - 2);
  const auto check = [&](const char* name, const std::vector<int64_t>& values, int64_t least) {
    bool good = values.size() == spatial;
    for (const auto value : values) good = good && value >= least;
    TORCH_CHECK(
        good, "te_int8::scaled_convolution: expected ", name, " to have ", spatial, " values of at least ", least, ", got ",
        at::IntArrayRef(values));
  };
  check("stride", geometry.stride, 1);
  check("padding", geometry.padding, 0);
  check("dilation", geometry.dilation, 1);
  TORCH_CHECK(
      geometry.groups >= 1 && a.size(1) == b.size(1) * geometry.groups && b.size(0) % geometry.groups == 0,
      "te_int8::scaled_convolution: expected b [O,C/groups,*] with O a multiple of groups = ", geometry.groups,
      " for a with C = ", a.size(1), ", got shape ", b.sizes());
  TORCH_CHECK(
      a.device() == b.device(), "te_int8::scaled_convolution: expected b on ", a.device(), " like a, got ", b.device());
  for (std::size_t i = 0; i < spatial; ++i) {
    const auto dim = static_cast<int64_t>(i) + 2;
    TORCH_CHECK(
        b.size(dim) > 0 && geometry.positions(i, a.size(dim), b.size(dim)) > 0,
        "te_int8::scaled_convolution: expected a window of b that fits into the padded a, got shapes ", b.sizes(), " and ",
        a.sizes());
  }
  if (a_scales) check_scales(op, "a_scales", *a_scales, a.size(0), a);
  if (b_scales) check_scales(op, "b_scales", *b_scales, b.size(0), b);
  if (bias) check_bias(op, *bias, b.size(0), a.device());
  const auto dtype = out_dtype.value_or(at::kFloat);
  if (dtype == at::kInt) {
    const auto depth = b.size(0) == 0 ? 0 : b.numel() / b.size(0);
    TORCH_CHECK(
        !a_scales && !b_scales && !bias && depth <= kMaxInt32Depth,
        "te_int8::scaled_convolution: expected no scales, no bias and windows of at most ", kMaxInt32Depth,
        " values with out_dtype int32 (raw sums), got windows of ", depth,
        a_scales || b_scales || bias ? " and some of those" : "");
  } else {
    check_out_dtype(op, dtype);
  }
  return dtype;
}

}  // namespace te_int8::inline v0::detail
