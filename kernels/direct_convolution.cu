// See windows.h. Convolutions in many groups, whose products would be too narrow for tiles: a thread adds up an output, or the four
// of neighbouring channels of a depthwise convolution. Bound by what it reads, which the caches hold.
#include <climits>

#include "epilogue.cuh"
#include "launch.h"
#include "windows.h"

namespace te_int8::kernels {
namespace {

constexpr int kThreads = 256;

/// f(pixel [*, channels] of the input, tap) for those taps of a position's window that lie inside.
template <typename F>
__device__ void for_each_tap(const WindowGeometry& g, int position, const F& f) {
  int begin[3];
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int positions = static_cast<int>(g.positions[d]), next = position / positions;
    begin[d] = (position - next * positions) * static_cast<int>(g.stride[d]) - static_cast<int>(g.padding[d]);
    position = next;
  }
  const auto size = [&](int d) { return static_cast<int>(g.size[d]); };
  const auto window = [&](int d) { return static_cast<int>(g.window[d]); };
  const auto place = [&](int d, int i) { return begin[d] + i * static_cast<int>(g.dilation[d]); };
  for (int i = 0; i < window(0); ++i) {
    const int z = place(0, i);
    if (z < 0 || z >= size(0)) continue;
    for (int j = 0; j < window(1); ++j) {
      const int y = place(1, j);
      if (y < 0 || y >= size(1)) continue;
      const int64_t line = ((int64_t{position} * size(0) + z) * size(1) + y) * size(2);
      for (int k = 0; k < window(2); ++k) {
        const int x = place(2, k);
        if (x >= 0 && x < size(2)) f(line + x, (i * window(1) + j) * window(2) + k);
      }
    }
  }
}

__device__ int positions_of_sample(const WindowGeometry& g) {
  return static_cast<int>(g.positions[0] * g.positions[1] * g.positions[2]);
}

/// An output a thread. kWords: its group's channels are read four at a time. (Left to itself, ptxas spills registers so that more
/// blocks have room.)
template <bool kWords>
__global__ void __launch_bounds__(kThreads, 4) by_output(
    const int8_t* __restrict__ codes, const int8_t* __restrict__ weights, __grid_constant__ const WindowGeometry g,
    int out_channels, __grid_constant__ const Epilogue epilogue, Type type, void* __restrict__ out) {
  const int row = static_cast<int>(blockIdx.x), o = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (o >= out_channels) return;
  const auto channels = static_cast<int>(g.group_channels), groups = static_cast<int>(g.channels) / channels;
  const int first = o / (out_channels / groups) * channels;
  const int8_t* weight = weights + o * g.depth();
  int32_t sum = 0;
  for_each_tap(g, row, [&](int64_t pixel, int tap) {
    const int8_t *x = codes + pixel * g.channels + first, *w = weight + tap * channels;
    if constexpr (kWords) {
#pragma unroll 4
      for (int c = 0; c < channels; c += 4) {
        sum = __dp4a(*reinterpret_cast<const int*>(x + c), *reinterpret_cast<const int*>(w + c), sum);
      }
    } else {
#pragma unroll 4
      for (int c = 0; c < channels; ++c) sum += int32_t{x[c]} * w[c];
    }
  });
  store_result(type, out, int64_t{row} * out_channels + o, epilogue_of(epilogue, sum, row / positions_of_sample(g), o));
}

constexpr int kChannelsOfBlock = 128, kRowsOfBlock = kThreads / 32;

/// Depthwise: a warp has 128 channels of a position, whose weights the block holds as [taps, 128].
__global__ void __launch_bounds__(kThreads) by_four_channels(
    const int8_t* __restrict__ codes, const int8_t* __restrict__ weights, __grid_constant__ const WindowGeometry g,
    __grid_constant__ const Epilogue epilogue, Type type, void* __restrict__ out) {
  extern __shared__ char4 held[];
  const auto taps = static_cast<int>(g.depth()), lane = static_cast<int>(threadIdx.x);
  const int64_t first = int64_t{blockIdx.y} * kChannelsOfBlock, channel = first + 4 * lane;
  const auto here = static_cast<int>(min(int64_t{kChannelsOfBlock}, g.channels - first));
  for (auto i = static_cast<int>(threadIdx.y) * 32 + lane; i < here * taps; i += kThreads) {
    reinterpret_cast<int8_t*>(held)[i % taps * kChannelsOfBlock + i / taps] = weights[first * taps + i];
  }
  __syncthreads();
  if (channel >= g.channels) return;
  const auto rows = static_cast<int>(g.rows()), step = static_cast<int>(gridDim.x) * kRowsOfBlock;
  for (auto row = static_cast<int>(blockIdx.x * kRowsOfBlock + threadIdx.y); row < rows; row += step) {
    int32_t sums[4] = {};
    for_each_tap(g, row, [&](int64_t pixel, int tap) {
      const char4 x = *reinterpret_cast<const char4*>(codes + pixel * g.channels + channel);
      const char4 w = held[tap * (kChannelsOfBlock / 4) + lane];
      sums[0] += int32_t{x.x} * w.x;
      sums[1] += int32_t{x.y} * w.y;
      sums[2] += int32_t{x.z} * w.z;
      sums[3] += int32_t{x.w} * w.w;
    });
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      store_result(
          type, out, row * g.channels + channel + i,
          epilogue_of(epilogue, sums[i], row / positions_of_sample(g), channel + i));
    }
  }
}

}  // namespace

cudaError_t convolve_directly(
    const int8_t* codes, const int8_t* weights, const WindowGeometry& g, int64_t out_channels, const Epilogue& epilogue,
    Type type, void* out, cudaStream_t stream) {
  const int64_t rows = g.rows();
  if (rows == 0 || out_channels == 0) return cudaSuccess;
  if (rows > INT_MAX / 2 || out_channels > INT_MAX) return cudaErrorInvalidValue;
  const auto in_words = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 4 == 0; };
  constexpr int64_t kMostTaps = 48 * 1024 / kChannelsOfBlock;
  const bool depthwise = g.group_channels == 1 && out_channels == g.channels && g.channels % 4 == 0 && g.depth() <= kMostTaps;
  if (depthwise && in_words(codes)) {
    constexpr int64_t kRowsOfThread = 8;  // for which the weights are held
    const dim3 grid(
        static_cast<unsigned>(ceil_div(rows, kRowsOfBlock * kRowsOfThread)),
        static_cast<unsigned>(ceil_div(g.channels, kChannelsOfBlock)));
    by_four_channels<<<grid, dim3(32, kRowsOfBlock), static_cast<std::size_t>(g.depth() * kChannelsOfBlock), stream>>>(
        codes, weights, g, epilogue, type, out);
    return cudaGetLastError();
  }
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(ceil_div(out_channels, kThreads)));
  return with_bool(g.group_channels % 4 == 0 && in_words(codes) && in_words(weights), [&](auto words) {
    by_output<decltype(words)::value><<<grid, kThreads, 0, stream>>>(
        codes, weights, g, static_cast<int>(out_channels), epilogue, type, out);
    return cudaGetLastError();
  });
}

}  // namespace te_int8::kernels
