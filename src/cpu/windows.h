// The windows of a convolution over codes with channels last, and how a block of them is multiplied by panels (kernels.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <torch/types.h>

#include <te_int8/detail/convolution.h>

#include "isa.h"

namespace te_int8::cpu {

inline constexpr int64_t kCodesInCache = 768 * 1024;  ///< of a block of windows, which are multiplied while the cache has them

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
  /// f(whether it is inside, its first pixel, where the window begins in it) for each line of the input that a window reads.
  template <typename F>
  void for_each_line(const Place& place, const F& f) const {
    for (int64_t i = 0; i < window[0]; ++i) {
      const int64_t z = place.slice * stride[0] - padding[0] + i * dilation[0];
      for (int64_t j = 0; j < window[1]; ++j) {
        const int64_t y = place.row * stride[1] - padding[1] + j * dilation[1];
        const bool inside = z >= 0 && z < size[0] && y >= 0 && y < size[1];
        f(inside, ((place.sample * size[0] + z) * size[1] + y) * size[2], place.column * stride[2] - padding[2]);
      }
    }
  }
  /// Windows in a block: whole twelves, which the kernels multiply at once, and blocks of like size, which threads share
  /// out. The larger they are, the less often the weights are read.
  int64_t block() const {
    const auto most = std::clamp<int64_t>(kCodesInCache / (depth() + 64) / 12, 1, 16) * 12;
    const auto blocks = (count() + most - 1) / most;
    return (count() + 12 * blocks - 1) / (12 * blocks) * 12;
  }
};

/// Windows as rows of codes in the order [*window, channels of the group], padded as scaled_mm's rows are, with their sums.
class Block {
 public:
  Block(const int8_t* codes, const Windows& windows)
      : x_(codes), w_(windows), padded_(padded_depth(windows.depth())), ld_(padded_ + 64) {}

  void load(int64_t first, int64_t rows, int64_t group) {
    codes_.resize(static_cast<std::size_t>(rows * ld_));
    sums_.resize(static_cast<std::size_t>(rows));
    auto place = w_.place_of(first);
    for (int64_t row = 0; row < rows; ++row, w_.advance(place)) {
      auto* to = codes_.data() + row * ld_;
      std::fill(copy_window(place, group, to), to + padded_, int8_t{0});
      sums_[static_cast<std::size_t>(row)] = kernels().row_sum(to, padded_);
    }
  }
  void multiply(int64_t rows, const uint8_t* panel, int64_t /*first*/, int64_t columns, const Epilogue& epilogue) const {
    kernels().multiply(codes_.data(), ld_, sums_.data(), rows, panel, padded_, columns, epilogue);
  }

 private:
  int8_t* copy_window(const Windows::Place& place, int64_t group, int8_t* to) const {
    w_.for_each_line(place, [&](bool inside, int64_t line, int64_t begin) { to = copy_line(inside, line, begin, group, to); });
    return to;
  }

  /// The values of a window in one line of the input, from `begin` on, which may lie outside.
  int8_t* copy_line(bool inside, int64_t line, int64_t begin, int64_t group, int8_t* to) const {
    const int64_t count = w_.window[2], channels = w_.group_channels;
    if (!inside) return std::fill_n(to, count * channels, int8_t{0});
    if (w_.dilation[2] == 1 && channels == w_.channels) {  // whole pixels that lie side by side
      const int64_t from = std::clamp<int64_t>(-begin, 0, count), until = std::clamp<int64_t>(w_.size[2] - begin, from, count);
      to = std::fill_n(to, from * channels, int8_t{0});
      to = std::copy_n(x_ + (line + begin + from) * channels, (until - from) * channels, to);
      return std::fill_n(to, (count - until) * channels, int8_t{0});
    }
    const int64_t there = std::min(channels, w_.channels - group * channels);  // the last group may have fewer
    for (int64_t i = 0; i < count; ++i) {
      const int64_t x = begin + i * w_.dilation[2];
      const bool in_line = x >= 0 && x < w_.size[2];
      to = in_line ? std::copy_n(x_ + (line + x) * w_.channels + group * channels, there, to) : std::fill_n(to, there, int8_t{0});
      to = std::fill_n(to, channels - there, int8_t{0});
    }
    return to;
  }

  const int8_t* x_;
  const Windows& w_;
  int64_t padded_, ld_;
  std::vector<int8_t> codes_;
  std::vector<int32_t> sums_;
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
        pixels_.push_back(inside && x >= 0 && x < w_.size[2] ? x_ + (line + x) * w_.channels : zeros_.data());
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
