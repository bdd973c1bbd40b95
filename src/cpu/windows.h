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
  int64_t padded(std::size_t dimension) const { return size[dimension] + 2 * padding[dimension]; }
  /// Windows in a block: whole lines of the results, and blocks of like size, which threads share out. The larger they are, the
  /// less often the weights are read.
  int64_t block() const {
    const auto codes = std::max<int64_t>(1, std::min(depth(), stride[0] * stride[1] * stride[2] * channels));
    const auto most = std::clamp<int64_t>(kCodesInCache / codes, 12, kMostWindows);
    const auto unit = std::min(positions[2], most / 12 * 12);
    const auto at_once = most / unit * unit, blocks = (count() + at_once - 1) / at_once;
    return (count() + unit * blocks - 1) / (unit * blocks) * unit;
  }
};

/// The shifted codes of an input [N,*,C] with its padding, in which the kernels read windows where they lie.
class PaddedCodes {
 public:
  /// `spare` codes more may be read behind the last.
  PaddedCodes(const int8_t* codes, const Windows& windows, int64_t spare)
      : line_(windows.padded(2) * windows.channels), lines_(windows.samples * windows.padded(0) * windows.padded(1)),
        data_(empty({lines_ * line_ + spare}, at::kByte)) {
    auto* to = data_.mutable_data_ptr<uint8_t>();
    std::fill_n(to + lines_ * line_, spare, kZero);
    in_parallel(lines_, grain(line_), [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) write_line(codes, windows, line, to + line * line_);
    });
  }
  const uint8_t* data() const { return data_.const_data_ptr<uint8_t>(); }

 private:
  static constexpr uint8_t kZero = 128;

  void write_line(const int8_t* codes, const Windows& w, int64_t line, uint8_t* to) const {
    const int64_t y = line % w.padded(1) - w.padding[1], slice = line / w.padded(1);
    const int64_t z = slice % w.padded(0) - w.padding[0], sample = slice / w.padded(0);
    if (z < 0 || z >= w.size[0] || y < 0 || y >= w.size[1]) {
      std::fill_n(to, line_, kZero);
      return;
    }
    const int64_t width = w.size[2] * w.channels, before = w.padding[2] * w.channels;
    to = std::fill_n(to, before, kZero);
    kernels().shift(codes + ((sample * w.size[0] + z) * w.size[1] + y) * width, width, to);
    std::fill_n(to + width, before, kZero);
  }

  int64_t line_, lines_;
  at::Tensor data_;
};

/// How a block of windows is multiplied by panels: line by line of the results, in which windows are a constant distance apart.
class Block {
 public:
  /// Windows in `pieces` of `depth` codes: the lines of a window, or its values where `by_line` is not set.
  Block(const PaddedCodes& codes, const Windows& windows, bool by_line, int64_t depth)
      : codes_(codes.data()), w_(windows), depth_(depth) {
    for (int64_t i = 0; i < w_.window[0]; ++i) {
      for (int64_t j = 0; j < w_.window[1]; ++j) {
        for (int64_t k = 0; k < (by_line ? 1 : w_.window[2]); ++k) {
          offsets_.push_back(code_at(0, i * w_.dilation[0], j * w_.dilation[1], k * w_.dilation[2]));
        }
      }
    }
  }

  void load(int64_t first, int64_t /*rows*/, int64_t group) {
    first_ = first;
    group_ = group;
  }
  void multiply(int64_t rows, const uint8_t* panel, int64_t /*first*/, int64_t columns, const Epilogue& epilogue) const {
    for (int64_t row = 0; row < rows;) {
      const auto place = w_.place_of(first_ + row);
      const auto begin = code_at(
          place.sample, place.slice * w_.stride[0], place.row * w_.stride[1], place.column * w_.stride[2]);
      const int64_t now = std::min(rows - row, w_.positions[2] - place.column);
      const Rows windows{
          .codes = codes_ + begin + group_ * w_.group_channels,
          .ld = w_.stride[2] * w_.channels,
          .depth = depth_,
          .pieces = static_cast<int64_t>(offsets_.size()),
          .offsets = offsets_.data()};
      kernels().multiply(windows, now, panel, columns, after(epilogue, row));
      row += now;
    }
  }

 private:
  int64_t code_at(int64_t sample, int64_t z, int64_t y, int64_t x) const {
    return (((sample * w_.padded(0) + z) * w_.padded(1) + y) * w_.padded(2) + x) * w_.channels;
  }

  const uint8_t* codes_;
  const Windows& w_;
  int64_t depth_;
  std::vector<int64_t> offsets_;
  int64_t first_ = 0, group_ = 0;
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
