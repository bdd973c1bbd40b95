// Operations that make codes, and values from codes, on CUDA tensors, by the kernels of kernels/quantize.h.
#include <torch/library.h>

#include <te_int8/detail/gradient_codes.h>
#include <te_int8/number_format.h>

#include "../../kernels/quantize.h"
#include "device.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using cuda::OnDeviceOf, cuda::dense, cuda::leave_to_reference, cuda::type_of;
using Codes = std::tuple<Tensor, Tensor>;
using CodesOfBoth = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Codes quantize_rows(const Tensor& x, std::string_view granularity) {
  detail::check_float("quantize_rows", "x", x);
  const bool per_tensor = detail::is_per_tensor("quantize_rows", granularity);
  const OnDeviceOf device(x);
  if (leave_to_reference() || x.dim() == 0) return reference::quantize_rows(x, granularity);
  const auto values = dense(x);
  auto codes = at::empty(x.sizes(), x.options().dtype(at::kChar));
  const auto rows = x.sizes().slice(0, x.dim() - 1);
  auto scales = at::empty(per_tensor ? at::IntArrayRef{1} : rows, x.options().dtype(at::kFloat));
  const auto type = type_of(values.scalar_type());
  auto* to = codes.mutable_data_ptr<int8_t>();
  auto* scale = scales.mutable_data_ptr<float>();
  C10_CUDA_CHECK(
      per_tensor
          ? kernels::quantize_tensor(type, values.const_data_ptr(), x.numel(), to, scale, device.stream())
          : kernels::quantize_rows(
                type, values.const_data_ptr(), scales.numel(), x.size(-1), to, scale, device.stream()));
  return {codes, scales};
}

/// Empty codes and scales for the columns of a matrix like x, and what the kernels need to make them.
struct Columns {
  Tensor codes, scales, workspace;

  explicit Columns(const Tensor& x) : Columns(x, kernels::quantize_columns_workspace(x.size(1))) {}
  Columns(const Tensor& x, std::size_t workspace_bytes)
      : codes(at::empty({x.size(1), x.size(0)}, x.options().dtype(at::kChar))),
        scales(at::empty({x.size(1)}, x.options().dtype(at::kFloat))),
        workspace(at::empty({static_cast<int64_t>(workspace_bytes)}, x.options().dtype(at::kByte))) {}
};

Codes quantize_columns(const Tensor& x) {
  detail::check_float("quantize_columns", "x", x);
  detail::check_dim("quantize_columns", "x", x, 2);
  const OnDeviceOf device(x);
  if (leave_to_reference()) return reference::quantize_columns(x);
  const auto values = dense(x);
  const Columns columns(values);
  C10_CUDA_CHECK(kernels::quantize_columns(
      type_of(values.scalar_type()), values.const_data_ptr(), x.size(0), x.size(1),
      columns.workspace.mutable_data_ptr(), columns.codes.mutable_data_ptr<int8_t>(),
      columns.scales.mutable_data_ptr<float>(), device.stream()));
  return {columns.codes, columns.scales};
}

Tensor column_sums(const Tensor& x) {
  detail::check_float("column_sums", "x", x);
  detail::check_dim("column_sums", "x", x, 2);
  const OnDeviceOf device(x);
  if (leave_to_reference()) return reference::column_sums(x);
  const auto values = dense(x);
  auto sums = at::empty({x.size(1)}, x.options().dtype(at::kFloat));
  const auto workspace = at::empty(
      {static_cast<int64_t>(kernels::column_sums_workspace(x.size(0), x.size(1)))}, x.options().dtype(at::kByte));
  C10_CUDA_CHECK(kernels::column_sums(
      type_of(values.scalar_type()), values.const_data_ptr(), x.size(0), x.size(1), workspace.mutable_data_ptr(),
      sums.mutable_data_ptr<float>(), device.stream()));
  return sums;
}

CodesOfBoth quantize_rows_and_columns(const Tensor& x, bool column_sums) {
  detail::check_float("quantize_rows_and_columns", "x", x);
  detail::check_dim("quantize_rows_and_columns", "x", x, 2);
  const OnDeviceOf device(x);
  if (leave_to_reference()) {
    const auto sums = column_sums ? reference::column_sums(x) : at::empty({0}, x.options().dtype(at::kFloat));
    return std::tuple_cat(reference::quantize_rows(x, "row"), reference::quantize_columns(x), std::tuple(sums));
  }
  const auto values = dense(x);
  auto codes = at::empty(x.sizes(), x.options().dtype(at::kChar));
  auto scales = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  auto sums = at::empty({column_sums ? x.size(1) : 0}, x.options().dtype(at::kFloat));
  const Columns columns(values, kernels::quantize_rows_and_columns_workspace(x.size(0), x.size(1), column_sums));
  C10_CUDA_CHECK(kernels::quantize_rows_and_columns(
      type_of(values.scalar_type()), values.const_data_ptr(), x.size(0), x.size(1), cuda::multiprocessors(),
      columns.workspace.mutable_data_ptr(), codes.mutable_data_ptr<int8_t>(), scales.mutable_data_ptr<float>(),
      columns.codes.mutable_data_ptr<int8_t>(), columns.scales.mutable_data_ptr<float>(),
      column_sums ? sums.mutable_data_ptr<float>() : nullptr, device.stream()));
  return {codes, scales, columns.codes, columns.scales, sums};
}

Codes requantize_columns(const Tensor& codes, const Tensor& scales) {
  detail::check_int8("requantize_columns", "codes", codes);
  detail::check_dim("requantize_columns", "codes", codes, 2);
  detail::check_scales("requantize_columns", "scales", scales, codes.size(0), codes);
  const OnDeviceOf device(codes);
  if (leave_to_reference()) return reference::requantize_columns(codes, scales);
  const auto values = codes.contiguous(), row_scales = scales.contiguous();
  const Columns columns(values);
  C10_CUDA_CHECK(kernels::requantize_columns(
      values.const_data_ptr<int8_t>(), row_scales.const_data_ptr<float>(), scales.size(0) == 1, codes.size(0),
      codes.size(1), columns.workspace.mutable_data_ptr(), columns.codes.mutable_data_ptr<int8_t>(),
      columns.scales.mutable_data_ptr<float>(), device.stream()));
  return {columns.codes, columns.scales};
}

Tensor dequantize(const Tensor& codes, const Tensor& scales, std::optional<at::ScalarType> out_dtype) {
  const auto dtype = detail::check_dequantize(codes, scales, out_dtype);
  const OnDeviceOf device(codes);
  if (leave_to_reference() || dtype == at::kDouble || codes.dim() == 0) {
    return reference::dequantize(codes, scales, out_dtype);
  }
  const auto from = codes.contiguous(), row_scales = scales.contiguous();
  auto out = at::empty(codes.sizes(), codes.options().dtype(dtype));
  const int64_t rows = c10::multiply_integers(codes.sizes().slice(0, codes.dim() - 1));
  C10_CUDA_CHECK(kernels::dequantize_rows(
      from.const_data_ptr<int8_t>(), row_scales.const_data_ptr<float>(), scales.numel() == 1, rows, codes.size(-1),
      type_of(dtype), out.mutable_data_ptr(), device.stream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CUDA, m) {
  m.impl("quantize_rows", TORCH_FN(quantize_rows));
  m.impl("quantize_columns", TORCH_FN(quantize_columns));
  m.impl("column_sums", TORCH_FN(column_sums));
  m.impl("quantize_rows_and_columns", TORCH_FN(quantize_rows_and_columns));
  m.impl("requantize_columns", TORCH_FN(requantize_columns));
  m.impl("dequantize", TORCH_FN(dequantize));
}

namespace detail {

Operand::Both complete_codes(const Tensor& dy, CodesOfGradient made, bool column_sums) {
  const OnDeviceOf device(dy);
  const auto sums = column_sums ? at::empty({dy.size(1)}, dy.options().dtype(at::kFloat)) : Tensor();
  const Columns columns(dy, column_sums ? kernels::column_sums_workspace(dy.size(0), dy.size(1)) : 0);
  C10_CUDA_CHECK(kernels::quantize_columns_with_maxima(
      type_of(dy.scalar_type()), dy.const_data_ptr(), dy.size(0), dy.size(1),
      reinterpret_cast<const uint32_t*>(made.column_amax.const_data_ptr<int32_t>()), columns.workspace.mutable_data_ptr(),
      columns.codes.mutable_data_ptr<int8_t>(), columns.scales.mutable_data_ptr<float>(),
      column_sums ? sums.mutable_data_ptr<float>() : nullptr, device.stream()));
  return {std::move(made.rows), std::make_shared<Operand>(columns.codes, columns.scales, OperandForm::ColumnCodes), sums};
}

}  // namespace detail
}  // namespace te_int8::inline v0
