// See windows.h. Convolutions in many groups, whose products would be too narrow for tiles: a thread adds up an output, or the four
// of neighbouring channels of a depthwise convolution. Bound by what it reads, which the caches hold.
#include <algorithm>
#include <bit>
#include <climits>

#include "epilogue.cuh"
#include "launch.h"
#include "piece.cuh"
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
  const auto row = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y), o = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (row >= static_cast<int>(g.rows()) || o >= out_channels) return;
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

constexpr int kRun = 4;  ///< positions of a thread that lie side by side
constexpr int64_t kMostBlocks = 4096;  ///< which fill every GPU; more to do is done by the same ones, which hold the weights

/// Four values side by side.
__device__ void store_four(float* to, const float (&v)[4]) { *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]); }
template <typename T>
__device__ void store_four(T* to, const float (&v)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(word_of_values<T>(v[0], v[1]), word_of_values<T>(v[2], v[3]));
}

/// Depthwise: a thread has four channels of kRun positions. The block, blockDim.x threads wide, holds their weights as
/// [taps, 4 blockDim.x].
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) by_four_channels(
    const int8_t* __restrict__ codes, const int8_t* __restrict__ weights, __grid_constant__ const WindowGeometry g,
    __grid_constant__ const Epilogue epilogue, T* __restrict__ out) {
  extern __shared__ uint32_t held[];
  const auto lanes = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x), width = 4 * lanes;
  const auto taps = static_cast<int>(g.depth()), channels = static_cast<int>(g.channels);
  const int first = static_cast<int>(blockIdx.y) * width, channel = first + 4 * lane;
  for (int i = static_cast<int>(threadIdx.y) * lanes + lane; i < min(width, channels - first) * taps; i += kThreads) {
    reinterpret_cast<int8_t*>(held)[i % taps * width + i / taps] = weights[int64_t{first} * taps + i];
  }
  __syncthreads();
  if (channel >= channels) return;
  float b_scales[4], biases[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    b_scales[c] = b_scale_at(epilogue, channel + c);
    biases[c] = bias_at(epilogue, channel + c);
  }
  const auto of = [](int64_t value) { return static_cast<int>(value); };
  const int line_width = of(g.size[2]), runs_of_line = (of(g.positions[2]) + kRun - 1) / kRun;
  const int runs = of(g.samples * g.positions[0] * g.positions[1]) * runs_of_line;
  const auto step = static_cast<int>(gridDim.x * blockDim.y);
  for (auto run = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y); run < runs; run += step) {
    const int row = run / runs_of_line, position = (run - row * runs_of_line) * kRun;  // of outputs
    const int slice = row / of(g.positions[1]), sample = slice / of(g.positions[0]);
    const int y = (row - slice * of(g.positions[1])) * of(g.stride[1]) - of(g.padding[1]);
    const int z = (slice - sample * of(g.positions[0])) * of(g.stride[0]) - of(g.padding[0]);
    const int begin = position * of(g.stride[2]) - of(g.padding[2]);
    int32_t sums[kRun][4] = {};
    const uint32_t* weight = held + lane;
    for (int i = 0; i < of(g.window[0]); ++i) {
      for (int j = 0; j < of(g.window[1]); ++j) {
        const int in_z = z + i * of(g.dilation[0]), in_y = y + j * of(g.dilation[1]);
        if (in_z < 0 || in_z >= of(g.size[0]) || in_y < 0 || in_y >= of(g.size[1])) {
          weight += of(g.window[2]) * lanes;
          continue;
        }
        const int64_t line = ((int64_t{sample} * of(g.size[0]) + in_z) * of(g.size[1]) + in_y) * line_width;
        const int8_t* x = codes + line * channels + channel;
        for (int k = 0; k < of(g.window[2]); ++k, weight += lanes) {
          const uint32_t four = *weight;
          int place = begin + k * of(g.dilation[2]);
#pragma unroll
          for (int r = 0; r < kRun; ++r, place += of(g.stride[2])) {
            if (place < 0 || place >= line_width) continue;
            const int pixel = *reinterpret_cast<const int*>(x + int64_t{place} * channels);
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[r][c] = __dp4a(pixel, static_cast<int>(four & (0xffU << 8 * c)), sums[r][c]);
          }
        }
      }
    }
    const float a_scale = a_scale_at(epilogue, sample);
    T* to = out + (int64_t{row} * of(g.positions[2]) + position) * channels + channel;
#pragma unroll
    for (int r = 0; r < kRun; ++r, to += channels) {
      if (position + r >= of(g.positions[2])) break;
      float values[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) values[c] = epilogue_formula(sums[r][c], a_scale, b_scales[c], biases[c]);
      store_four(to, values);
    }
  }
}

template <typename T>
cudaError_t launch_depthwise(
    const int8_t* codes, const int8_t* weights, const WindowGeometry& g, const Epilogue& epilogue, T* out, cudaStream_t stream) {
  const auto lanes = static_cast<unsigned>(std::min<uint64_t>(std::bit_ceil(static_cast<uint64_t>(g.channels / 4)), 32));
  const dim3 block(lanes, kThreads / lanes);
  const int64_t runs = g.samples * g.positions[0] * g.positions[1] * ceil_div(g.positions[2], kRun);
  const int64_t columns = ceil_div(g.channels, 4 * lanes);
  const dim3 grid(
      static_cast<unsigned>(std::min(ceil_div(runs, block.y), ceil_div(kMostBlocks, columns))), static_cast<unsigned>(columns));
  by_four_channels<T><<<grid, block, static_cast<std::size_t>(g.depth() * 4 * lanes), stream>>>(codes, weights, g, epilogue, out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t convolve_directly(
    const int8_t* codes, const int8_t* weights, const WindowGeometry& g, int64_t out_channels, const Epilogue& epilogue,
    Type type, void* out, cudaStream_t stream) {
  const int64_t rows = g.rows();
  if (rows == 0 || out_channels == 0) return cudaSuccess;
  if (rows > kMostDirectRows || out_channels > INT_MAX) return cudaErrorInvalidValue;
  const auto in_words = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 4 == 0; };
  constexpr int64_t kMostTaps = 48 * 1024 / 128;  // whose weights shared memory holds
  const bool depthwise = g.group_channels == 1 && out_channels == g.channels && g.channels % 4 == 0 && g.depth() <= kMostTaps;
  if (depthwise && in_words(codes) && is_aligned(out)) {
    return with_type(type, [&](auto t) {
      return launch_depthwise(codes, weights, g, epilogue, static_cast<decltype(t)*>(out), stream);
    });
  }
  const auto lanes = static_cast<unsigned>(std::min<uint64_t>(std::bit_ceil(static_cast<uint64_t>(out_channels)), kThreads));
  const dim3 block(lanes, kThreads / lanes);
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, block.y)), static_cast<unsigned>(ceil_div(out_channels, lanes)));
  return with_bool(g.group_channels % 4 == 0 && in_words(codes) && in_words(weights), [&](auto words) {
    by_output<decltype(words)::value><<<grid, block, 0, stream>>>(
        codes, weights, g, static_cast<int>(out_channels), epilogue, type, out);
    return cudaGetLastError();
  });
}

}  // namespace te_int8::kernels
