// Codes in the layout that the kernels of the back end "cpu" read, for operands that are used again.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// Rows of a panel, which is the unit of the layout.
inline constexpr int64_t kPanelRows = 32;

/// Whether scaled_mm_packed takes codes [*,depth] on this device, for the back end in force.
TE_INT8_API bool can_pack(const at::Tensor& codes);

/// int8 [N,K] -> uint8 [ceil(N / kPanelRows), bytes of a panel]; see src/cpu/kernels.h.
TE_INT8_API at::Tensor pack_codes(const at::Tensor& codes);

/// ops::scaled_mm with b [columns, K] packed.
TE_INT8_API at::Tensor scaled_mm_packed(
    const at::Tensor& a, const at::Tensor& packed, int64_t columns, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias, at::ScalarType dtype);

}  // namespace te_int8::inline v0::detail
