// The back end "cpu": convolutions of codes as products of windows and panels (kernels.h). Windows are read from the input's
// codes, channels last, where they lie (windows.h): a window's values come in pieces, which the weight's panels are padded to match.
#include <algorithm>
#include <utility>
#include <vector>

#include <torch/library.h>
#include <torch/types.h>

#include <te_int8/detail/packed_codes.h>
#include <te_int8/number_format.h>

#include "isa.h"
#include "memory.h"
#include "parallel.h"
#include "transpose.h"
#include "windows.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using cpu::DepthwiseBlock, cpu::WindowBlock, cpu::Windows, cpu::grain, cpu::in_parallel, cpu::leave_to_reference;
using detail::ConvolutionGeometry;
using OptionalTensor = std::optional<Tensor>;

/// How the output channels of a weight [O, taps x C/groups] are shared out to panels. Groups of few channels share one, as one group
/// whose weight is zero where an input channel is not of the output's own: as many products, but full panels. All groups of a
/// depthwise convolution are one, in panels of their own [taps, kPanel].
struct Panels {
  bool depthwise;
  int64_t together;  ///< groups that are one
  int64_t groups;    ///< that are left, the last of which may have fewer
  int64_t channels;  ///< output channels of such a group
  int64_t count;     ///< panels of such a group
  int64_t pieces;    ///< of a window
  int64_t piece;     ///< codes that count in a piece
  int64_t bytes;     ///< of a panel

  Panels(int64_t out_channels, int64_t depth, const detail::WindowPacking& packing)
      : depthwise(packing.groups > 1 && packing.groups == out_channels && depth == packing.taps),
        together(depthwise ? packing.groups : groups_of_panel(out_channels / packing.groups, depth, packing.groups)),
        groups((packing.groups + together - 1) / together),
        channels(out_channels / packing.groups * together),
        count(cpu::panels(channels)),
        pieces(packing.taps / (groups == 1 ? packing.line : 1)),
        piece(together * depth / pieces),
        bytes(depthwise ? packing.taps * cpu::kPanel : cpu::panel_bytes(pieces * cpu::padded_depth(piece))) {}

  /// The panels of codes [*, pieces x piece].
  Tensor pack(const Tensor& codes) const {
    const int64_t rows = codes.size(0), padded = cpu::padded_depth(piece);
    if (padded == piece) return detail::pack_codes(codes);
    return detail::pack_codes(at::constant_pad_nd(codes.reshape({rows, pieces, piece}), {0, padded - piece}).view({rows, pieces * padded}));
  }

 private:
  static int64_t groups_of_panel(int64_t channels, int64_t depth, int64_t groups) {
    const int64_t most = std::max<int64_t>(1, detail::kMaxInt32Depth / std::max<int64_t>(depth, 1));
    return std::clamp<int64_t>(cpu::kPanel / channels, 1, std::min(groups, most));
  }
};

/// Values for all columns of all panels, so that kernels read whole vectors; empty where there are none.
std::vector<float> by_panel(const OptionalTensor& values, int64_t out_channels, const Panels& panels) {
  if (!values) return {};
  const auto dense = values->resolve_neg().to(at::kFloat).expand({out_channels}).contiguous();
  const auto* from = dense.const_data_ptr<float>();
  const int64_t padded = panels.count * cpu::kPanel;
  std::vector<float> result(static_cast<std::size_t>(panels.groups * padded), 0.0F);
  for (int64_t group = 0; group < panels.groups; ++group) {
    const int64_t first = group * panels.channels;
    std::copy_n(from + first, std::min(panels.channels, out_channels - first), result.begin() + group * padded);
  }
  return result;
}

/// A scale for each window; undefined where there are none.
Tensor by_window(const OptionalTensor& scales, const Windows& windows) {
  if (!scales) return {};
  return scales->resolve_neg().expand({windows.samples}).unsqueeze(1).expand({-1, windows.per_sample()}).contiguous();
}

/// Results [rows, kPanel] go to `out` [samples, channels, per_sample], from `channel` on, for the windows from `first` on.
template <typename Element>
void store_by_channel(
    const Element* results, int64_t rows, int64_t columns, Element* out, int64_t channels, int64_t per_sample, int64_t first,
    int64_t channel) {
  for (int64_t row = 0; row < rows;) {
    const int64_t sample = (first + row) / per_sample, position = (first + row) % per_sample;
    const int64_t now = std::min(rows - row, per_sample - position);
    cpu::transpose(
        results + row * cpu::kPanel, cpu::kPanel, now, columns, out + (sample * channels + channel) * per_sample + position,
        per_sample);
    row += now;
  }
}

void store_by_channel(
    int64_t element, const char* results, int64_t rows, int64_t columns, void* out, int64_t channels, int64_t per_sample,
    int64_t first, int64_t channel) {
  const auto store = [&](auto unit) {
    using Element = decltype(unit);
    store_by_channel(
        reinterpret_cast<const Element*>(results), rows, columns, static_cast<Element*>(out), channels, per_sample, first,
        channel);
  };
  element == 2 ? store(uint16_t{}) : element == 4 ? store(uint32_t{}) : store(uint64_t{});
}

/// Windows of one value that leave values out: only those that they read need to be copied.
bool reads_a_part(at::IntArrayRef weight, const ConvolutionGeometry& geometry) {
  const auto is = [](at::IntArrayRef values, int64_t value) { return std::ranges::all_of(values, [&](int64_t v) { return v == value; }); };
  return is(weight.slice(2), 1) && is(geometry.padding, 0) && !is(geometry.stride, 1);
}

Tensor scaled_convolution(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    int64_t groups, std::optional<at::ScalarType> out_dtype) {
  const ConvolutionGeometry geometry{stride.vec(), padding.vec(), dilation.vec(), groups};
  const auto dtype = detail::check_scaled_convolution(a, b, a_scales, b_scales, bias, geometry, out_dtype);
  if (!detail::can_pack_windows(b.sizes()) || leave_to_reference()) {
    return reference::scaled_convolution(a, b, a_scales, b_scales, bias, geometry, out_dtype);
  }
  const auto windows = detail::codes_with_channels_last(b).view({b.size(0), -1});
  return detail::scaled_convolution_packed(
      a, detail::pack_windows(windows, detail::packing_of(b.sizes(), geometry)), b.sizes(), a_scales, b_scales, bias, geometry, dtype,
      a.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CPU, m) { m.impl("scaled_convolution", TORCH_FN(scaled_convolution)); }

namespace detail {

Tensor codes_with_channels_last(const Tensor& a) {
  if (!a.is_cpu() || !a.is_contiguous() || a.is_neg() || a.numel() == 0) return a.movedim(1, -1).resolve_neg().contiguous();
  const auto result = cpu::empty(a.movedim(1, -1).sizes(), at::kChar);
  const int64_t channels = a.size(1), positions = a.numel() / a.size(0) / channels;
  constexpr int64_t kPart = 256;  // positions that are transposed at once
  const int64_t parts = (positions + kPart - 1) / kPart;
  in_parallel(a.size(0) * parts, grain(kPart * channels), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % parts * kPart, sample = task / parts * channels * positions;
      cpu::transpose(
          a.const_data_ptr<int8_t>() + sample + first, positions, channels, std::min(kPart, positions - first),
          result.data_ptr<int8_t>() + sample + first * channels, channels);
    }
  });
  return result;
}

bool can_pack_windows(at::IntArrayRef weight) {
  return weight[0] > 0 && c10::multiply_integers(weight.slice(1)) <= kMaxInt32Depth;
}

Tensor pack_windows(const Tensor& codes, const WindowPacking& packing) {
  const int64_t out_channels = codes.size(0), depth = codes.size(1), taps = packing.taps;
  const Panels panels(out_channels, depth, packing);
  if (packing.groups == 1) return panels.pack(codes);
  if (panels.depthwise) {
    const auto padded = at::constant_pad_nd(codes, {0, 0, 0, panels.count * cpu::kPanel - out_channels});
    return padded.view({panels.count, cpu::kPanel, taps}).transpose(1, 2).reshape({panels.count, panels.bytes}).view(at::kByte);
  }
  const int64_t rows = out_channels / packing.groups, all_channels = panels.groups * panels.channels;
  const auto padded = at::constant_pad_nd(codes, {0, 0, 0, all_channels - out_channels});
  const auto own = padded.view({panels.groups, panels.together, rows, taps, depth / taps});
  const auto all = at::zeros({panels.groups, panels.together, rows, taps, panels.together, depth / taps}, codes.options());
  all.diagonal(0, 1, 4).copy_(own.movedim(1, -1));
  std::vector<Tensor> packed;
  for (const auto& group : all.view({all_channels, panels.together * depth}).chunk(panels.groups)) packed.push_back(panels.pack(group));
  return at::cat(packed);
}

Tensor scaled_convolution_packed(
    const Tensor& a, const Tensor& packed, at::IntArrayRef weight, const OptionalTensor& a_scales,
    const OptionalTensor& b_scales, const OptionalTensor& bias, const ConvolutionGeometry& geometry, at::ScalarType dtype,
    at::MemoryFormat format) {
  if (reads_a_part(weight, geometry)) {
    auto part = a;
    auto dense = geometry;
    for (std::size_t i = 0; i < geometry.stride.size(); ++i) {
      part = part.slice(static_cast<int64_t>(i) + 2, 0, std::nullopt, geometry.stride[i]);
      dense.stride[i] = 1;
    }
    return scaled_convolution_packed(part, packed, weight, a_scales, b_scales, bias, dense, dtype, format);
  }
  const Panels panels(weight[0], c10::multiply_integers(weight.slice(1)), packing_of(weight, geometry));
  auto merged = weight.vec();
  merged[1] *= panels.together;
  const Windows windows(a.sizes(), merged, geometry);
  const auto sizes = geometry.result_sizes(a.sizes(), weight);
  const bool by_channel = format == at::MemoryFormat::Contiguous;
  const auto result = cpu::empty(by_channel ? sizes : channels_last_sizes(sizes), dtype);
  if (result.numel() == 0) return by_channel ? result : result.movedim(-1, 1);

  const auto x = codes_with_channels_last(a);
  const int64_t channels = weight[0];
  const auto x_scales = by_window(a_scales, windows);
  const auto w_scales = by_panel(b_scales, channels, panels), added = by_panel(bias, channels, panels);
  const auto* panel_at = packed.const_data_ptr<uint8_t>();
  auto* out = static_cast<char*>(result.mutable_data_ptr());
  const auto element = static_cast<int64_t>(result.element_size());
  const int64_t block_size = windows.block(), blocks = (windows.count() + block_size - 1) / block_size;
  const int64_t per_block = panels.groups * panels.count;

  const auto compute = [&](auto block, int64_t begin, int64_t end) {
    std::vector<char> results(by_channel ? static_cast<std::size_t>(block_size * cpu::kPanel * element) : 0);
    int64_t loaded = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / per_block * block_size, rows = std::min(block_size, windows.count() - first);
      const int64_t place = task % per_block, group = place / panels.count, column = place % panels.count * cpu::kPanel;
      if (std::exchange(loaded, task / panels.count) != task / panels.count) block.load(first, rows, group);
      const int64_t channel = group * panels.channels + column;
      const int64_t columns = std::min({cpu::kPanel, panels.channels - column, channels - channel});
      const cpu::Epilogue epilogue{
          .type = cpu::type_of(dtype),
          .out = by_channel ? static_cast<void*>(results.data()) : out + (first * channels + channel) * element,
          .ld = by_channel ? cpu::kPanel : channels,
          .x_scales = x_scales.defined() ? x_scales.const_data_ptr<float>() + first : nullptr,
          .x_step = x_scales.defined() ? 1 : 0,
          .w_scales = w_scales.empty() ? nullptr : w_scales.data() + place * cpu::kPanel,
          .bias = added.empty() ? nullptr : added.data() + place * cpu::kPanel};
      block.multiply(rows, panel_at + place * panels.bytes, column, columns, epilogue);
      if (by_channel) {
        store_by_channel(element, results.data(), rows, columns, out, channels, windows.per_sample(), first, channel);
      }
    }
  };
  const int64_t products = panels.bytes / cpu::kPanel + 32;  // of an output, and what storing it is worth
  const auto* codes = x.const_data_ptr<int8_t>();
  const auto for_each_task = [&](const auto& block) {
    in_parallel(blocks * per_block, grain(block_size * cpu::kPanel * products / 64), [&](int64_t begin, int64_t end) {
      compute(block, begin, end);
    });
  };
  if (panels.depthwise) {
    for_each_task(DepthwiseBlock(codes, windows));
  } else {
    // Pieces side by side are one for the kernels, where the panels leave no room between them.
    const bool by_line = panels.groups == 1 && geometry.dilation.back() == 1;
    const int64_t depth = panels.pieces * cpu::padded_depth(panels.piece) / windows.lines() / (by_line ? 1 : windows.window[2]);
    const cpu::PaddedCodes padded(codes, windows, depth);
    for_each_task(WindowBlock(padded, windows, by_line, depth));
  }
  return by_channel ? result : result.movedim(-1, 1);
}

}  // namespace detail
}  // namespace te_int8::inline v0
