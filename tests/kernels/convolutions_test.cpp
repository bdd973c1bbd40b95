// The kernels of convolutions by themselves, as kernels_test.cpp does.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "../../kernels/gemm.h"
#include "../../kernels/windows.h"
#include "host_reference.h"

using namespace te_int8_kernel_test;

namespace {

WindowGeometry geometry_of(
    int64_t samples, int64_t channels, int64_t groups, std::vector<int64_t> size, std::vector<int64_t> window,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  WindowGeometry g{samples, channels, channels / groups, 0, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {}, {1, 1, 1}};
  for (std::size_t i = 0; i < size.size(); ++i) {
    const auto d = 3 - size.size() + i;
    g.size[d] = size[i];
    g.window[d] = window[i];
    g.stride[d] = stride[i];
    g.padding[d] = padding[i];
    g.dilation[d] = dilation[i];
    g.positions[d] = (size[i] + 2 * padding[i] - dilation[i] * (window[i] - 1) - 1) / stride[i] + 1;
  }
  return g;
}

/// The windows of one group as a matrix [rows, depth].
std::vector<int8_t> windows_of(const std::vector<int8_t>& codes, const WindowGeometry& g, int64_t group) {
  std::vector<int8_t> result;
  for (int64_t row = 0; row < g.rows(); ++row) {
    for (int64_t k = 0; k < g.depth(); ++k) {
      int64_t position = row, tap = k / g.group_channels, place[3];
      for (int d = 2; d >= 0; --d) {
        place[d] = position % g.positions[d] * g.stride[d] - g.padding[d] + tap % g.window[d] * g.dilation[d];
        position /= g.positions[d];
        tap /= g.window[d];
      }
      bool inside = true;
      int64_t pixel = position;
      for (int d = 0; d < 3; ++d) {
        inside = inside && place[d] >= 0 && place[d] < g.size[d];
        pixel = pixel * g.size[d] + place[d];
      }
      const auto channel = group * g.group_channels + k % g.group_channels;
      result.push_back(inside ? codes[static_cast<std::size_t>(pixel * g.channels + channel)] : int8_t{0});
    }
  }
  return result;
}

/// Sums [rows, out_channels].
std::vector<int32_t> sums_of_windows(
    const std::vector<int8_t>& codes, const std::vector<int8_t>& weights, const WindowGeometry& g, int64_t out_channels) {
  const int64_t groups = g.channels / g.group_channels, columns = out_channels / groups, rows = g.rows();
  std::vector<int32_t> result(size_of(rows, out_channels));
  for (int64_t group = 0; group < groups; ++group) {
    const auto first = weights.begin() + group * columns * g.depth();
    const auto sums = sums_of(windows_of(codes, g, group), {first, first + columns * g.depth()}, rows, columns, g.depth());
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(sums.begin() + row * columns, columns, result.begin() + row * out_channels + group * columns);
    }
  }
  return result;
}

struct Case {
  WindowGeometry geometry;
  int64_t out_channels;
};

/// Calls f(T(), case, codes, weights, epilogue, expected) for each type of results.
template <typename F>
void for_each_convolution(const std::vector<Case>& cases, const F& f) {
  for (const auto& c : cases) {
    const auto& g = c.geometry;
    CAPTURE(g.samples, g.channels, g.group_channels, g.size[1], g.size[2], g.window[1], g.window[2], c.out_channels);
    const auto codes = random_codes(g.samples * g.size[0] * g.size[1] * g.size[2] * g.channels);
    const auto weights = random_codes(c.out_channels * g.depth());
    const auto of_samples = random_scales(g.samples), b_scales = random_scales(c.out_channels), bias = random_scales(c.out_channels);
    std::vector<float> a_scales;
    for (int64_t row = 0; row < g.rows(); ++row) a_scales.push_back(of_samples[static_cast<std::size_t>(row * g.samples / g.rows())]);
    const auto sums = sums_of_windows(codes, weights, g, c.out_channels);
    const Device<int8_t> x(codes), w(weights);
    const Device<float> x_scales(of_samples), w_scales(b_scales), added(bias);
    const Epilogue epilogue{x_scales.get(), 1, w_scales.get(), 1, added.get(), Type::Float};
    for_each_type([&](auto t) {
      using T = decltype(t);
      CAPTURE(sizeof(T));
      f(t, c, x.get(), w.get(), epilogue, formula<T>(sums, a_scales, b_scales, bias));
    });
  }
}

}  // namespace

TEST_CASE("kernels: convolutions as products that read windows", "[kernels]") {
  SKIP_WITHOUT_GPU();
  int launched = 0;
  const std::vector<Case> cases{
      {geometry_of(2, 16, 1, {9, 7}, {3, 3}, {1, 1}, {1, 1}, {1, 1}), 24},
      {geometry_of(3, 80, 1, {13, 10}, {5, 2}, {2, 3}, {2, 0}, {1, 2}), 136},
      {geometry_of(1, 32, 1, {40}, {7}, {4}, {3}, {2}), 8},
      {geometry_of(5, 144, 1, {4, 4}, {1, 1}, {1, 1}, {0, 0}, {1, 1}), 200}};
  for_each_convolution(
      cases, [&](auto t, const Case& c, const int8_t* x, const int8_t* w, const Epilogue& epilogue, const auto& expected) {
        using T = decltype(t);
        const auto& g = c.geometry;
        const Device<T> out(expected.size());
        const Product product{x, w, g.rows(), c.out_channels, g.depth(), epilogue, kType<T>, out.get(), false, &g};
        REQUIRE(fits_gemms(product));
        for (const auto& gemm : gemms()) {
          if (!runs_here(gemm, kType<T>) || !gemm.windows) continue;
          CAPTURE(gemm.name, gemm.along_m, gemm.swizzle);
          check(cudaMemset(out.get(), 0x5a, expected.size() * sizeof(T)));
          check(gemm.launch(product, gemm, multiprocessors(), nullptr));
          REQUIRE(same(floats(out.read()), expected));
          ++launched;
        }
      });
  if (capability() == 90) CHECK(launched > 0);
}

TEST_CASE("kernels: which windows products can read", "[kernels]") {
  const auto fits = [](const WindowGeometry& g) {
    alignas(16) static int8_t memory[16];
    return fits_gemms({memory, memory, g.rows(), 16, g.depth(), {}, Type::Float, memory, false, &g});
  };
  CHECK(fits(geometry_of(1, 16, 1, {200, 200}, {3, 3}, {8, 1}, {127, 0}, {1, 63})));
  CHECK_FALSE(fits(geometry_of(1, 24, 1, {9, 9}, {3, 3}, {1, 1}, {1, 1}, {1, 1})));
  CHECK_FALSE(fits(geometry_of(1, 16, 1, {9, 9, 9}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1})));
  CHECK_FALSE(fits(geometry_of(1, 16, 1, {200, 200}, {3, 3}, {9, 1}, {0, 0}, {1, 1})));
  CHECK_FALSE(fits(geometry_of(1, 16, 1, {200, 200}, {3, 3}, {1, 1}, {128, 0}, {1, 1})));
  CHECK_FALSE(fits(geometry_of(1, 16, 1, {200, 200}, {3, 3}, {1, 1}, {0, 0}, {1, 64})));
}

TEST_CASE("kernels: convolutions of few output channels in a group", "[kernels]") {
  SKIP_WITHOUT_GPU();
  const std::vector<Case> cases{
      {geometry_of(2, 12, 12, {9, 7}, {3, 3}, {1, 1}, {1, 1}, {1, 1}), 12},
      {geometry_of(2, 136, 136, {6, 5}, {5, 3}, {2, 1}, {2, 1}, {1, 2}), 136},
      {geometry_of(3, 7, 7, {11}, {4}, {2}, {1}, {1}), 14},
      {geometry_of(1, 24, 6, {5, 6}, {3, 2}, {1, 2}, {1, 0}, {1, 1}), 300},
      {geometry_of(2, 9, 3, {3, 4, 5}, {2, 3, 3}, {1, 1, 2}, {1, 0, 1}, {1, 1, 1}), 6}};
  for_each_convolution(
      cases, [&](auto t, const Case& c, const int8_t* x, const int8_t* w, const Epilogue& epilogue, const auto& expected) {
        using T = decltype(t);
        const Device<T> out(expected.size());
        check(convolve_directly(x, w, c.geometry, c.out_channels, epilogue, kType<T>, out.get(), nullptr));
        REQUIRE(same(floats(out.read()), expected));
      });
}
