// te_int8::scaled_convolution on CUDA tensors, as a product of windows (kernels/windows.h) and weight: by a kernel that reads the
// windows from the codes, or where there is none for it they are written as a matrix for scaled_mm. Groups of few output channels
// are added up directly.
#include <algorithm>
#include <vector>

#include <torch/library.h>

#include <te_int8/detail/packed_codes.h>
#include <te_int8/number_format.h>
#include <te_int8/operators.h>

#include "../../kernels/windows.h"
#include "choose.h"
#include "device.h"
#include "epilogue.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using cuda::OnDeviceOf, cuda::leave_to_reference;
using detail::ConvolutionGeometry;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kMostCodes = 256 << 20;  ///< of windows that are written at once; so many bytes of sums at most
constexpr int64_t kLeastColumns = 32, kLeastDepth = 1024;  ///< of a group for which a product is worth while: one of them
constexpr int64_t kAlign = 16;  ///< codes: what the products read at once

kernels::WindowGeometry window_geometry(at::IntArrayRef a, at::IntArrayRef b, const ConvolutionGeometry& geometry) {
  kernels::WindowGeometry result{};
  result.samples = a[0];
  result.channels = a[1];
  result.group_channels = b[1];
  const auto set = [](int64_t (&to)[3], at::IntArrayRef values, int64_t otherwise) {
    std::ranges::copy(detail::in_three_dimensions(values, otherwise), to);
  };
  set(result.size, a.slice(2), 1);
  set(result.window, b.slice(2), 1);
  set(result.positions, at::IntArrayRef(geometry.result_sizes(a, b)).slice(2), 1);
  set(result.stride, geometry.stride, 1);
  set(result.padding, geometry.padding, 0);
  set(result.dilation, geometry.dilation, 1);
  return result;
}

OptionalTensor part_of(const OptionalTensor& values, int64_t first, int64_t count) {
  return values && values->size(0) != 1 ? OptionalTensor(values->narrow(0, first, count)) : values;
}

/// out [rows, O] for weights [O, depth]; false where no kernel reads these windows from the codes.
bool multiply_windows(
    const Tensor& codes, const Tensor& weights, const kernels::WindowGeometry& windows, const kernels::Epilogue& epilogue,
    const Tensor& out, const OnDeviceOf& device) {
  const kernels::Product product{
      .a = codes.const_data_ptr<int8_t>(),
      .b = weights.const_data_ptr<int8_t>(),
      .m = out.size(0),
      .n = out.size(1),
      .k = weights.size(1),
      .epilogue = epilogue,
      .type = cuda::type_of(out.scalar_type()),
      .out = out.mutable_data_ptr(),
      .windows = &windows};
  return cuda::multiply_by_kernel(product, out, device.stream());
}

/// The same for any windows [rows, depth], which are written as a matrix, as many at once as kMostCodes has room for.
Tensor multiply_written_windows(
    const Tensor& codes, const Tensor& weights, const kernels::WindowGeometry& windows, const OptionalTensor& a_scales,
    const OptionalTensor& b_scales, const OptionalTensor& bias, at::ScalarType dtype, const OnDeviceOf& device) {
  const int64_t rows = windows.rows(), channels = weights.size(0), depth = weights.size(1), ld = (depth + kAlign - 1) / kAlign * kAlign;
  const auto padded = ld == depth ? weights : at::constant_pad_nd(weights, {0, ld - depth});
  const auto of_rows =
      a_scales && a_scales->size(0) != 1 ? a_scales->repeat_interleave(rows / windows.samples, 0, rows) : a_scales;
  const int64_t at_once = std::min(rows, std::max<int64_t>(1, kMostCodes / std::max(ld, 4 * channels)));
  const auto matrix = at::empty({at_once, ld}, codes.options());
  std::vector<Tensor> results;
  for (int64_t row = 0; row < rows; row += at_once) {
    const int64_t count = std::min(at_once, rows - row);
    C10_CUDA_CHECK(kernels::copy_windows(
        codes.const_data_ptr<int8_t>(), windows, row, count, ld, matrix.mutable_data_ptr<int8_t>(), device.stream()));
    results.push_back(
        ops::scaled_mm(matrix.narrow(0, 0, count), padded, part_of(of_rows, row, count), b_scales, bias, dtype));
  }
  detail::wrote_windows() = true;
  return results.size() == 1 ? results.front() : at::cat(results);
}

Tensor scaled_convolution(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    int64_t groups, std::optional<at::ScalarType> out_dtype) {
  const ConvolutionGeometry geometry{stride.vec(), padding.vec(), dilation.vec(), groups};
  const auto dtype = detail::check_scaled_convolution(a, b, a_scales, b_scales, bias, geometry, out_dtype);
  const OnDeviceOf device(a);
  const int64_t channels = b.size(0) / groups;
  auto windows = window_geometry(a.sizes(), b.sizes(), geometry);
  const int64_t rows = windows.rows(), depth = windows.depth();
  if (leave_to_reference() || channels == 0 || rows == 0 || depth == 0 || depth > detail::kMaxInt32Depth) {
    return reference::scaled_convolution(a, b, a_scales, b_scales, bias, geometry, out_dtype);
  }
  const auto codes = detail::codes_with_channels_last(a);
  const auto weights = detail::codes_with_channels_last(b).view({b.size(0), depth});
  const auto result_for = [&](int64_t columns) {
    return at::empty({rows, columns}, a.options().dtype(dtype == at::kDouble ? at::kFloat : dtype));
  };
  const auto directly = [&] {
    const auto result = result_for(b.size(0));
    const cuda::DenseEpilogue epilogue(a_scales, b_scales, bias);
    C10_CUDA_CHECK(kernels::convolve_directly(
        codes.const_data_ptr<int8_t>(), weights.const_data_ptr<int8_t>(), windows, b.size(0), epilogue.get(),
        cuda::type_of(result.scalar_type()), result.mutable_data_ptr(), device.stream()));
    return result.to(dtype);
  };
  const auto of_group = [&](int64_t group) {
    const int64_t first = group * channels;
    windows.first_channel = group * windows.group_channels;
    const auto weight = weights.narrow(0, first, channels);
    const auto scales = part_of(b_scales, first, channels), added = bias ? OptionalTensor(bias->narrow(0, first, channels)) : bias;
    if (dtype != at::kInt) {
      const auto result = result_for(channels);
      const cuda::DenseEpilogue epilogue(a_scales, scales, added);
      if (multiply_windows(codes, weight, windows, epilogue.get(), result, device)) return result.to(dtype);
    }
    return multiply_written_windows(codes, weight, windows, a_scales, scales, added, dtype, device);
  };
  const auto product = [&] {
    std::vector<Tensor> of_groups;
    for (int64_t group = 0; group < groups; ++group) of_groups.push_back(of_group(group));
    return groups == 1 ? of_groups.front() : at::cat(of_groups, 1);
  };
  const bool narrow = groups > 1 && channels < kLeastColumns && depth <= kLeastDepth && rows <= kernels::kMostDirectRows &&
                      dtype != at::kInt;
  const auto sizes = detail::channels_last_sizes(geometry.result_sizes(a.sizes(), b.sizes()));
  return (narrow ? directly() : product()).view(sizes).movedim(-1, 1).contiguous(a.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CUDA, m) { m.impl("scaled_convolution", TORCH_FN(scaled_convolution)); }

}  // namespace te_int8::inline v0
