// See windows.h. Memory-bound: a thread copies one piece of 16, 4 or 1 codes that lie side by side in input and matrix.
#include "launch.h"
#include "windows.h"

namespace te_int8::kernels {
namespace {

constexpr int kThreads = 256;

template <typename Piece>
__global__ void __launch_bounds__(kThreads) windows_of_codes(
    const int8_t* __restrict__ codes, WindowGeometry g, int64_t first, int64_t ld, int64_t pieces,
    int8_t* __restrict__ windows) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= pieces) return;
  const int64_t at = index * static_cast<int64_t>(sizeof(Piece)), row = at / ld;
  const auto k = static_cast<int>(at - row * ld);
  Piece piece{};
  const auto channels = static_cast<int>(g.group_channels);
  int tap = k / channels;
  const int channel = k - tap * channels;
  int64_t position = first + row;
  int64_t place[3];
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const auto window = static_cast<int>(g.window[d]);
    const int64_t next = position / g.positions[d];
    const int next_tap = tap / window;
    place[d] = (position - next * g.positions[d]) * g.stride[d] - g.padding[d] + (tap - next_tap * window) * g.dilation[d];
    position = next;
    tap = next_tap;
  }
  bool inside = tap == 0;  // else beyond the window: zeros up to ld
#pragma unroll
  for (int d = 0; d < 3; ++d) inside = inside && place[d] >= 0 && place[d] < g.size[d];
  if (inside) {
    const int64_t pixel = ((position * g.size[0] + place[0]) * g.size[1] + place[1]) * g.size[2] + place[2];
    piece = *reinterpret_cast<const Piece*>(codes + pixel * g.channels + g.first_channel + channel);
  }
  *reinterpret_cast<Piece*>(windows + at) = piece;
}

template <typename Piece>
cudaError_t launch(
    const int8_t* codes, const WindowGeometry& g, int64_t first, int64_t count, int64_t ld, int8_t* windows,
    cudaStream_t stream) {
  const int64_t pieces = count * ld / static_cast<int64_t>(sizeof(Piece));
  windows_of_codes<Piece><<<static_cast<unsigned>(ceil_div(pieces, kThreads)), kThreads, 0, stream>>>(
      codes, g, first, ld, pieces, windows);
  return cudaGetLastError();
}

}  // namespace

cudaError_t copy_windows(
    const int8_t* codes, const WindowGeometry& g, int64_t first, int64_t count, int64_t ld, int8_t* windows,
    cudaStream_t stream) {
  if (count == 0 || ld == 0) return cudaSuccess;
  const auto whole = [&](int64_t piece) {
    return g.group_channels % piece == 0 && g.channels % piece == 0 && g.first_channel % piece == 0 && ld % piece == 0 &&
           reinterpret_cast<uintptr_t>(codes) % static_cast<uintptr_t>(piece) == 0;
  };
  if (whole(16)) return launch<uint4>(codes, g, first, count, ld, windows, stream);
  if (whole(4)) return launch<uint32_t>(codes, g, first, count, ld, windows, stream);
  return launch<uint8_t>(codes, g, first, count, ld, windows, stream);
}

}  // namespace te_int8::kernels
