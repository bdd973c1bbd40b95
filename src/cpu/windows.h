// The windows of a convolution over codes with channels last, and how a block of them is multiplied by panels (kernels.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <torch/types.h>

#include <te_int8/detail/convolution.h>

#include "isa.h"
#include "memory.h"
#include "parallel.h"

namespace te_int8::cpu {

inline constexpr int64_t kCodesInCache = 256 * 1024;  ///< of a block of windows, which are multiplied while the cache has them
inline constexpr int64_t kMostWindows = 192;          ///< in a block, whose results are in the cache too
inline constexpr int64_t kShortLine = 7;              ///< the windows of a line of fewer results are gathered

/// Where the windows lie, in three spatial dimensions whatever there are.
struct Windows {
  std::array<int64_t, 3> size, window, positions, stride, padding, dilation;
  int64_t samples, channels, group_channels;

  Windows(at::IntArrayRef a, at::IntArrayRef b, const detail::ConvolutionGeometry& geometry)
      : size(detail::in_three_dimensions(a.slice(2), 1)),
        window(detail::in_three_dimensions(b.slice(2), 1)),
        positions(detail::in_three_dimensions(at::IntArrayRef(geometry.result_sizes(a, b)).slice(2), 1)),
        stride(detail::in_three_dimensions(geometry.stride, 1)),
        padding(detail::in_three_dimensions(geometry.padding, 0)),
        dilation(detail::in_three_dimensions(geometry.dilation, 1)),
        samples(a[0]),
        channels(a[1]),
        group_channels(b[1]) {}
  int64_t per_sample() const { return positions[0] * positions[1] * positions[2]; }
  int64_t count() const { return samples * per_sample(); }
  int64_t lines() const { return window[0] * window[1]; }
  int64_t depth() const { return window[0] * window[1] * window[2] * group_channels; }
  /// A window's place in the results.
  struct Place {
    int64_t sample, slice, row, column;
  };
  Place place_of(int64_t index) const {
    const int64_t row = index / positions[2], slice = row / positions[1];
    return {slice / positions[0], slice % positions[0], row % positions[1], index % positions[2]};
  }
  void advance(Place& place) const {
    if (++place.column < positions[2]) return;
    place.column = 0;
    if (++place.row < positions[1]) return;
    place.row = 0;
    if (++place.slice < positions[0]) return;
    place.slice = 0;
    ++place.sample;
  }
  /// f(whether it is inside, its number, where the window begins in it) for each line of the input that a window reads.
  template <typename F>
  void for_each_line(const Place& place, const F& f) const {
    for (int64_t i = 0; i < window[0]; ++i) {
      const int64_t z = place.slice * stride[0] - padding[0] + i * dilation[0];
      for (int64_t j = 0; j < window[1]; ++j) {
        const int64_t y = place.row * stride[1] - padding[1] + j * dilation[1];
        const bool inside = z >= 0 && z < size[0] && y >= 0 && y < size[1];
        f(inside, (place.sample * size[0] + z) * size[1] + y, place.column * stride[2] - padding[2]);
      }
    }
  }
  int64_t padded_line() const { return (size[2] + 2 * padding[2]) * channels; }
  bool pads_lines() const { return padding[0] > 0 || padding[1] > 0; }
  /// Whether all windows are a constant distance apart, as those of one value are.
  bool in_one_run() const {
    return !pads_lines() && padding[2] == 0 && positions[2] * stride[2] == size[2] * stride[1] &&
           positions[1] * stride[1] == size[1] * stride[0] && positions[0] * stride[0] == size[0];
  }
  /// Whether they are copied side by side, as lines of so few would be multiplied at half the speed.
  bool gathered() const { return positions[2] < kShortLine && !in_one_run(); }
  /// Windows in a block, which threads share out: blocks of like size, that end with a line of the results or with an equal part of
  /// one where lines matter. The larger they are, the less often the weights are read.
  int64_t block() const {
    const auto codes = gathered() ? depth() : std::min(depth(), stride[0] * stride[1] * stride[2] * channels);
    const auto most = std::clamp<int64_t>(kCodesInCache / std::max<int64_t>(1, codes), 24, kMostWindows) / 12 * 12;
    const auto parts = (positions[2] + most - 1) / most;
    const auto unit = in_one_run() || gathered() ? 12 : (positions[2] + parts - 1) / parts;
    const auto at_once = most / unit * unit, blocks = (count() + at_once - 1) / at_once;
    return (count() + unit * blocks - 1) / (unit * blocks) * unit;
  }
};

/// The shifted codes of an input [N,*,C], in which the kernels read windows where they lie. Lines have their padding around
/// them; all lines of padding are one.
class PaddedCodes {
 public:
  /// Up to `beyond` codes may be read behind a window.
  PaddedCodes(const int8_t* codes, const Windows& windows, int64_t beyond)
      : line_(windows.padded_line()), lines_(windows.samples * windows.size[0] * windows.size[1]) {
    const int64_t rest = (windows.pads_lines() ? line_ : 0) + beyond;
    data_ = empty({lines_ * line_ + rest}, at::kByte);
    auto* to = data_.mutable_data_ptr<uint8_t>();
    std::fill_n(to + lines_ * line_, rest, kShiftedZero);
    const int64_t width = windows.size[2] * windows.channels, edge = windows.padding[2] * windows.channels;
    in_parallel(lines_, grain(line_), [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        auto* at = std::fill_n(to + line * line_, edge, kShiftedZero);
        kernels().shift(codes + line * width, width, at);
        std::fill_n(at + width, edge, kShiftedZero);
      }
    });
  }
  const uint8_t* data() const { return data_.const_data_ptr<uint8_t>(); }
  /// Where a line begins; that of padding where it is not inside.
  int64_t begin_of(bool inside, int64_t line) const { return (inside ? line : lines_) * line_; }

 private:
  static constexpr uint8_t kShiftedZero = 128;

  int64_t line_, lines_;
  at::Tensor data_;
};

/// A block of windows that is multiplied by panels. It is a sequence of runs, of windows a constant distance apart, as the rows
/// that the kernels take are: those of a line of results, or all.
class WindowBlock {
 public:
  /// Windows in pieces of `depth` codes: their lines, or their single values where `by_line` is not set.
  WindowBlock(const PaddedCodes& codes, const Windows& windows, bool by_line, int64_t depth)
      : codes_(codes), w_(windows), values_(by_line ? 1 : w_.window[2]), depth_(depth), pieces_(w_.lines() * values_) {}

  void load(int64_t first, int64_t rows, int64_t group) {
    runs_.clear();
    offsets_.clear();
    for (int64_t row = 0; row < rows; row += runs_.back().rows) {
      const auto place = w_.place_of(first + row);
      const int64_t longest = w_.in_one_run() ? rows : w_.positions[2] - place.column;
      const auto* codes = codes_.data() + place.column * ld() + group * w_.group_channels;
      runs_.push_back({.rows = std::min(rows - row, longest), .codes = codes});
      w_.for_each_line(place, [&](bool inside, int64_t line, int64_t /*begin*/) {
        for (int64_t i = 0; i < values_; ++i) offsets_.push_back(codes_.begin_of(inside, line) + i * w_.dilation[2] * w_.channels);
      });
    }
    if (w_.gathered()) gather(rows);
  }
  /// `rows` are those that were loaded.
  void multiply(int64_t rows, const uint8_t* panel, int64_t /*first*/, int64_t columns, const Epilogue& epilogue) const {
    if (w_.gathered()) {
      const int64_t depth = pieces_ * depth_;
      kernels().multiply({.codes = gathered_.data(), .ld = row_distance(depth), .depth = depth}, rows, panel, columns, epilogue);
      return;
    }
    const auto* offsets = offsets_.data();
    int64_t row = 0;
    for (const auto& run : runs_) {
      const Rows windows{.codes = run.codes, .ld = ld(), .depth = depth_, .pieces = pieces_, .offsets = offsets};
      kernels().multiply(windows, run.rows, panel, columns, after(epilogue, row));
      row += run.rows;
      offsets += pieces_;
    }
  }

 private:
  struct Run {
    int64_t rows;
    const uint8_t* codes;  ///< from which the offsets of the first window's pieces count
  };

  int64_t ld() const { return w_.stride[2] * w_.channels; }
  void gather(int64_t rows) {
    const int64_t distance = row_distance(pieces_ * depth_);
    gathered_.resize(static_cast<std::size_t>(rows * distance));
    auto* window = gathered_.data();
    const auto* offsets = offsets_.data();
    for (const auto& run : runs_) {
      for (int64_t row = 0; row < run.rows; ++row, window += distance) {
        for (int64_t i = 0; i < pieces_; ++i) std::copy_n(run.codes + row * ld() + offsets[i], depth_, window + i * depth_);
      }
      offsets += pieces_;
    }
  }

  const PaddedCodes& codes_;
  const Windows& w_;
  int64_t values_, depth_, pieces_;
  std::vector<Run> runs_;
  std::vector<int64_t> offsets_;  ///< of the pieces of each run's first window
  std::vector<uint8_t> gathered_;
};

/// Windows of a depthwise convolution: the pixels themselves, or one of zeros beyond the edges.
class DepthwiseBlock {
 public:
  DepthwiseBlock(const int8_t* codes, const Windows& windows)
      : x_(codes), w_(windows), taps_(w_.window[0] * w_.window[1] * w_.window[2]),
        zeros_(static_cast<std::size_t>(w_.channels)) {}

  void load(int64_t first, int64_t rows, int64_t /*group*/) {
    pixels_.clear();
    auto place = w_.place_of(first);
    for (int64_t row = 0; row < rows; ++row, w_.advance(place)) add_pixels_of(place);
  }
  void multiply(int64_t rows, const uint8_t* panel, int64_t first, int64_t columns, const Epilogue& epilogue) const {
    kernels().multiply_by_channel(
        pixels_.data(), taps_, first, rows, reinterpret_cast<const int8_t*>(panel), columns, epilogue);
  }

 private:
  void add_pixels_of(const Windows::Place& place) {
    w_.for_each_line(place, [&](bool inside, int64_t line, int64_t begin) {
      for (int64_t i = 0; i < w_.window[2]; ++i) {
        const int64_t x = begin + i * w_.dilation[2];
        pixels_.push_back(inside && x >= 0 && x < w_.size[2] ? x_ + (line * w_.size[2] + x) * w_.channels : zeros_.data());
      }
    });
  }

  const int8_t* x_;
  const Windows& w_;
  int64_t taps_;
  std::vector<int8_t> zeros_;
  std::vector<const int8_t*> pixels_;
};

}  // namespace te_int8::cpu
