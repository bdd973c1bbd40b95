// The number format, in plain LibTorch operations: the truth that every back end is compared with,
// and the back end "reference" itself, on any device.
//
//   amax  = max |x| of a row, in fp32
//   scale = amax / 127
//   code  = clamp(rint(x * (127 / amax)), -127, 127), ties to even
//
// A row of zeros, or one so small that 127 / amax overflows, has codes 0 and scale 0. A row with a
// NaN or an infinity has codes 0 and scale NaN, so that whatever it touches is NaN.
#pragma once

#include <optional>
#include <string_view>
#include <tuple>

#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/types.h>

#include <te_int8/detail/checks.h>
#include <te_int8/detail/convolution.h>

namespace te_int8::inline v0::reference {

using Codes = std::tuple<at::Tensor, at::Tensor>;

inline constexpr double kMaxCode = 127.0;

namespace detail {

/// 127 as a tensor on x's device. Dividing by or into a C++ scalar will not do: LibTorch computes
/// scalar / x as reciprocal(x) * scalar, and on CUDA x / scalar as x * (1 / scalar); both round
/// twice.
inline at::Tensor max_code(const at::Tensor& x) { return at::full({}, kMaxCode, x.options()); }

/// Quantizes the rows of x [M,K]: int8 [M,K], fp32 [M].
inline Codes quantize_matrix(const at::Tensor& x) {
  const auto values = x.to(at::kFloat);
  const auto amax =
      values.size(1) == 0 ? at::zeros({values.size(0)}, values.options()) : values.abs().amax(1);
  const auto limit = max_code(amax);
  const auto inverse = at::div(limit, amax);
  const auto representable = at::isfinite(amax).logical_and_(at::isfinite(inverse));
  const auto scales = at::div(amax, limit)
                          .masked_fill_(at::isfinite(inverse).logical_not_(), 0.0)
                          .masked_fill_(at::isfinite(amax).logical_not_(), NAN);
  const auto codes = at::mul(values, inverse.unsqueeze(1))
                         .round_()
                         .clamp_(-kMaxCode, kMaxCode)
                         .masked_fill_(representable.logical_not().unsqueeze_(1), 0.0);
  return {codes.to(at::kChar).contiguous(), scales};
}

/// a [M,K] x b [N,K] -> [M,N], every sum exact. On CUDA a product in double: its sums stay integers
/// below 2^53, whatever the tensor cores do to fp32. Elsewhere fp32 products over pieces of K =
/// 1024, whose sums are integers of at most 2^24, added up in int64.
inline at::Tensor exact_sums(const at::Tensor& a, const at::Tensor& b) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  // 0 * -5 is -0 in floating point; an integer sum has no sign of zero, so 0 is added.
  if (a.is_cuda()) return at::matmul(a.to(at::kDouble), b.to(at::kDouble).t()).add_(0);
  constexpr int64_t piece = 1024;
  const auto product = [&](int64_t begin, int64_t length) {
    return at::matmul(
               a.narrow(1, begin, length).to(at::kFloat),
               b.narrow(1, begin, length).to(at::kFloat).t())
        .add_(0);
  };
  const int64_t depth = a.size(1);
  if (depth <= piece) return product(0, depth);
  auto sums = at::zeros({a.size(0), b.size(0)}, a.options().dtype(at::kLong));
  for (int64_t begin = 0; begin < depth; begin += piece) {
    sums.add_(product(begin, std::min(piece, depth - begin)).to(at::kLong));
  }
  return sums;
}

}  // namespace detail

/// See ops::quantize_rows.
inline Codes quantize_rows(const at::Tensor& x, std::string_view granularity) {
  te_int8::detail::check_float("quantize_rows", "x", x);
  if (te_int8::detail::is_per_tensor("quantize_rows", granularity)) {
    auto [codes, scales] = detail::quantize_matrix(x.reshape({1, -1}));
    return {codes.view(x.sizes()), scales};
  }
  TORCH_CHECK(
      x.dim() >= 1, "te_int8::quantize_rows: expected x with at least 1 dimension, got a scalar");
  const auto rows = x.sizes().slice(0, x.dim() - 1);
  auto [codes, scales] =
      detail::quantize_matrix(x.reshape({c10::multiply_integers(rows), x.size(-1)}));
  return {codes.view(x.sizes()), scales.view(rows)};
}

/// See ops::quantize_columns.
inline Codes quantize_columns(const at::Tensor& x) {
  te_int8::detail::check_float("quantize_columns", "x", x);
  te_int8::detail::check_dim("quantize_columns", "x", x, 2);
  return detail::quantize_matrix(x.t());
}

/// See ops::column_sums.
inline at::Tensor column_sums(const at::Tensor& x) {
  te_int8::detail::check_float("column_sums", "x", x);
  te_int8::detail::check_dim("column_sums", "x", x, 2);
  return x.sum(0, /*keepdim=*/false, at::kFloat);
}

/// See ops::requantize_columns.
inline Codes requantize_columns(const at::Tensor& codes, const at::Tensor& scales) {
  te_int8::detail::check_int8("requantize_columns", "codes", codes);
  te_int8::detail::check_dim("requantize_columns", "codes", codes, 2);
  te_int8::detail::check_scales("requantize_columns", "scales", scales, codes.size(0), codes);
  return detail::quantize_matrix(codes.to(at::kFloat).mul_(scales.unsqueeze(1)).t());
}

/// See ops::dequantize.
inline at::Tensor dequantize(
    const at::Tensor& codes, const at::Tensor& scales, std::optional<at::ScalarType> out_dtype) {
  const auto dtype = te_int8::detail::check_dequantize(codes, scales, out_dtype);
  const auto of_rows = scales.sizes() == codes.sizes().slice(0, codes.dim() - 1) ? scales.unsqueeze(-1) : scales;
  return codes.to(at::kFloat).mul_(of_rows).to(dtype);
}

/// Scales, bias and cast of exact sums [M,N]; see ops::scaled_mm.
inline at::Tensor epilogue(
    const at::Tensor& sums, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias,
    at::ScalarType dtype) {
  auto result = sums.to(at::kFloat);
  if (a_scales) result = result.mul(a_scales->unsqueeze(1));
  if (b_scales) result = result.mul(*b_scales);
  if (bias) result = result.add(bias->to(at::kFloat));
  return result.to(dtype);
}

/// See ops::scaled_mm.
inline at::Tensor scaled_mm(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias,
    std::optional<at::ScalarType> out_dtype) {
  const auto dtype = te_int8::detail::check_scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  const auto sums = detail::exact_sums(a, b);
  return dtype == at::kInt ? sums.to(at::kInt) : epilogue(sums, a_scales, b_scales, bias, dtype);
}

namespace detail {

/// a [N,C,*] convolved with b [O,C/groups,*], every sum exact: integers of at most 2^24 in fp32 by oneDNN's direct
/// convolution, or of at most 2^53 in double. Not by cuDNN nor, in fp32, by whatever LibTorch would choose, as their
/// transforms (Winograd's) are not exact.
inline at::Tensor exact_convolution(
    const at::Tensor& a, const at::Tensor& b, const te_int8::detail::ConvolutionGeometry& geometry) {
  const auto sizes = geometry.result_sizes(a.sizes(), b.sizes());
  if (a.numel() == 0 || b.numel() == 0) return at::zeros(sizes, a.options().dtype(at::kInt));
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto positive_zeros = [](const at::Tensor& sums) { return sums.add(0); };  // an integer sum has no -0
  if (a.is_cpu() && at::globalContext().hasMKLDNN() && b.numel() / b.size(0) <= 1024) {
    auto x = a.to(at::kFloat), weight = b.to(at::kFloat);
    auto [stride, padding, dilation, groups] = geometry;
    if (a.dim() == 3) {  // oneDNN's have two dimensions or three
      x = x.unsqueeze(2);
      weight = weight.unsqueeze(2);
      stride.insert(stride.begin(), 1);
      padding.insert(padding.begin(), 0);
      dilation.insert(dilation.begin(), 1);
    }
    return positive_zeros(at::mkldnn_convolution(x, weight, {}, padding, stride, dilation, groups).view(sizes));
  }
  return positive_zeros(at::_convolution(
      a.to(at::kDouble), b.to(at::kDouble), {}, geometry.stride, geometry.padding, geometry.dilation,
      /*transposed=*/false, std::vector<int64_t>(geometry.stride.size(), 0), geometry.groups, /*benchmark=*/false,
      /*deterministic=*/false, /*cudnn_enabled=*/false, /*allow_tf32=*/false));
}

}  // namespace detail

/// See ops::scaled_convolution.
inline at::Tensor scaled_convolution(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias,
    const te_int8::detail::ConvolutionGeometry& geometry, std::optional<at::ScalarType> out_dtype) {
  const auto dtype = te_int8::detail::check_scaled_convolution(a, b, a_scales, b_scales, bias, geometry, out_dtype);
  const auto sums = detail::exact_convolution(a, b, geometry);
  const auto format = a.suggest_memory_format();
  if (dtype == at::kInt) return sums.to(at::kInt).contiguous(format);
  // The epilogue of a matrix whose rows are the positions and whose columns are the output channels.
  const auto by_channel = sums.movedim(1, -1);
  const auto positions = c10::multiply_integers(sums.sizes().slice(2));
  auto of_rows = a_scales;
  if (a_scales && a_scales->size(0) == a.size(0)) of_rows = a_scales->repeat_interleave(positions);
  const auto rows = epilogue(by_channel.reshape({sums.size(0) * positions, sums.size(1)}), of_rows, b_scales, bias, dtype);
  return rows.view(by_channel.sizes()).movedim(-1, 1).contiguous(format);
}

}  // namespace te_int8::inline v0::reference
