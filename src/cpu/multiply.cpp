// The back end "cpu": products of codes, on CPU tensors, by the kernels of kernels.h.
#include <vector>

#include <torch/library.h>
#include <torch/types.h>

#include <te_int8/detail/packed_codes.h>
#include <te_int8/number_format.h>

#include "isa.h"
#include "memory.h"
#include "parallel.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using cpu::grain, cpu::in_parallel, cpu::kernels, cpu::leave_to_reference;
using OptionalTensor = std::optional<Tensor>;

static_assert(detail::kPanelRows == cpu::kPanel);

constexpr int64_t kBlock = 96;  ///< rows of x that are multiplied while they are in the cache

/// Values for all columns of all panels, so that kernels read whole vectors; empty where there are none.
std::vector<float> by_column(const OptionalTensor& values, int64_t columns) {
  if (!values) return {};
  const auto dense = values->resolve_neg().to(at::kFloat).contiguous();
  const auto* from = dense.const_data_ptr<float>();
  std::vector<float> padded(static_cast<std::size_t>(cpu::panels(columns) * cpu::kPanel), 0.0F);
  if (dense.numel() == 1) {
    std::fill_n(padded.begin(), columns, *from);
  } else {
    std::copy_n(from, columns, padded.begin());
  }
  return padded;
}

/// Shifted rows of x, padded to whole fours.
class RowBlock {
 public:
  RowBlock(const int8_t* x, int64_t depth)
      : x_(x), depth_(depth), padded_(cpu::padded_depth(depth)), ld_(cpu::row_distance(padded_)) {}

  void load(int64_t first, int64_t rows) {
    codes_.resize(static_cast<std::size_t>(rows * ld_));
    for (int64_t row = 0; row < rows; ++row) kernels().shift(x_ + (first + row) * depth_, depth_, codes_.data() + row * ld_);
  }
  void multiply(int64_t rows, const uint8_t* panel, int64_t columns, const cpu::Epilogue& epilogue) const {
    kernels().multiply({.codes = codes_.data(), .ld = ld_, .depth = padded_}, rows, panel, columns, epilogue);
  }

 private:
  const int8_t* x_;
  int64_t depth_, padded_, ld_;
  std::vector<uint8_t> codes_;
};

Tensor scaled_mm(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, std::optional<at::ScalarType> out_dtype) {
  const auto dtype = detail::check_scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  if (leave_to_reference() || a.size(1) > detail::kMaxInt32Depth) {
    return reference::scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  }
  return detail::scaled_mm_packed(
      a, detail::pack_codes(b), b.size(0), a_scales, b_scales, bias, dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CPU, m) { m.impl("scaled_mm", TORCH_FN(scaled_mm)); }

namespace detail {

bool can_pack(const Tensor& codes) {
  return codes.is_cpu() && codes.size(1) <= kMaxInt32Depth && !leave_to_reference();
}

Tensor pack_codes(const Tensor& codes) {
  const int64_t columns = codes.size(0), depth = codes.size(1), count = cpu::panels(columns);
  const auto dense = codes.contiguous();
  auto packed = cpu::empty({count, cpu::panel_bytes(depth)}, at::kByte);
  const auto* from = dense.const_data_ptr<int8_t>();
  auto* to = packed.data_ptr<uint8_t>();
  in_parallel(count, grain(cpu::panel_bytes(depth)), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * cpu::kPanel;
      kernels().pack(
          from + first * depth, depth, std::min(cpu::kPanel, columns - first), depth,
          to + panel * cpu::panel_bytes(depth));
    }
  });
  return packed;
}

Tensor scaled_mm_packed(
    const Tensor& a, const Tensor& packed, int64_t columns, const OptionalTensor& a_scales,
    const OptionalTensor& b_scales, const OptionalTensor& bias, at::ScalarType dtype) {
  if (bias) check_bias("scaled_mm", *bias, columns, a.device());  // layers come here past the operation, which checks too
  const int64_t rows = a.size(0), depth = a.size(1);
  auto result = cpu::empty({rows, columns}, dtype);
  if (result.numel() == 0) return result;
  const auto x = a.resolve_neg().contiguous();
  const auto x_scales = a_scales ? a_scales->resolve_neg().contiguous() : Tensor();
  const auto w_scales = by_column(b_scales, columns), added = by_column(bias, columns);
  const auto* panels = packed.const_data_ptr<uint8_t>();
  const int64_t panel_count = cpu::panels(columns);
  const auto type = cpu::type_of(dtype);
  auto* out = static_cast<char*>(result.mutable_data_ptr());
  const auto element = static_cast<int64_t>(result.element_size());

  // Divided by rows x panels, as the last block may be a small one; a thread takes the products of a block
  // and a panel that begin in its part.
  in_parallel(
      rows * panel_count, grain(cpu::kPanel * (depth + 32) / 64), [&](int64_t begin, int64_t end) {
        RowBlock block(x.const_data_ptr<int8_t>(), depth);
        for (int64_t first = begin / panel_count / kBlock * kBlock; first * panel_count < end; first += kBlock) {
          const int64_t count = std::min(kBlock, rows - first), origin = first * panel_count;
          const auto panel_at = [&](int64_t place) {
            return std::clamp<int64_t>((place - origin + count - 1) / count, 0, panel_count);
          };
          const int64_t first_panel = begin <= origin ? 0 : panel_at(begin), last_panel = panel_at(end);
          if (first_panel < last_panel) block.load(first, count);
          for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const int64_t column = panel * cpu::kPanel;
            const cpu::Epilogue epilogue{
                .type = type,
                .out = out + (first * columns + column) * element,
                .ld = columns,
                .x_scales = x_scales.defined()
                                ? x_scales.const_data_ptr<float>() + (x_scales.size(0) == 1 ? 0 : first)
                                : nullptr,
                .x_step = x_scales.defined() && x_scales.size(0) != 1 ? 1 : 0,
                .w_scales = w_scales.empty() ? nullptr : w_scales.data() + column,
                .bias = added.empty() ? nullptr : added.data() + column};
            block.multiply(
                count, panels + panel * cpu::panel_bytes(depth), std::min(cpu::kPanel, columns - column),
                epilogue);
          }
        }
      });
  return result;
}

}  // namespace detail
}  // namespace te_int8::inline v0
