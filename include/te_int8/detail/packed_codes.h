// Codes in the layout that the kernels of the back end "cpu" read, for operands that are used again.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/types.h>

#include <te_int8/config.h>
#include <te_int8/detail/convolution.h>

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

/// int8 [N,C,*] -> [N,*,C], dense: the same tensor where it lies so already.
TE_INT8_API at::Tensor codes_with_channels_last(const at::Tensor& codes);

/// Set where a convolution of the calling thread has written its windows to a GPU's memory, as no kernel reads them in place.
TE_INT8_API bool& wrote_windows();

/// Of a convolution's weight [O,C/groups,*].
struct WindowPacking {
  int64_t groups = 1;
  int64_t taps = 1;  ///< values of the window
  int64_t line = 1;  ///< of these are padded together to whole fours of codes: those side by side where single ones are none
  friend bool operator==(const WindowPacking&, const WindowPacking&) = default;
};
inline WindowPacking packing_of(at::IntArrayRef weight, const ConvolutionGeometry& geometry) {
  const bool together = geometry.dilation.back() == 1 && weight[1] * geometry.groups % 4 != 0;
  return {geometry.groups, c10::multiply_integers(weight.slice(2)), together ? weight.back() : 1};
}

/// Whether scaled_convolution_packed takes a weight of sizes [O,C/groups,*].
TE_INT8_API bool can_pack_windows(at::IntArrayRef weight);

/// A convolution's int8 weight as a matrix [O, *window x C/groups] with channels last -> the panels of its groups.
TE_INT8_API at::Tensor pack_windows(const at::Tensor& codes, const WindowPacking& packing);

/// ops::scaled_convolution with b, of sizes `weight`, packed. The result lies in `format`.
TE_INT8_API at::Tensor scaled_convolution_packed(
    const at::Tensor& a, const at::Tensor& packed, at::IntArrayRef weight, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias, const ConvolutionGeometry& geometry,
    at::ScalarType dtype, at::MemoryFormat format);

}  // namespace te_int8::inline v0::detail
