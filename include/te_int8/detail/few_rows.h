// Linear layers of few rows (decoding), which a device may compute in one kernel.
#pragma once

#include <optional>

#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// Whether linear_of_few_rows computes x [*,K] W^T + bias of codes [N,K], on their device and by the back end in force.
/// False for whatever it cannot read as it is, wrong arguments among it: the operations for each step do, or raise.
TE_INT8_API bool fits_linear_of_few_rows(
    const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales, const std::optional<at::Tensor>& bias);

/// scaled_mm of the codes of x, by row, and a weight's: [*,N]. Nobody else gets to see the codes of x.
TE_INT8_API at::Tensor linear_of_few_rows(
    const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales, const std::optional<at::Tensor>& bias,
    at::ScalarType dtype);

}  // namespace te_int8::inline v0::detail
