#include "gemm.h"

#include <climits>

#include "gemm_registry.h"
#include "launch.h"
#include "windows.h"

namespace te_int8::kernels {

std::vector<Gemm>& gemm_registry() {
  static auto* all = new std::vector<Gemm>;  // never destroyed: a backward may still come while the process ends
  return *all;
}

std::span<const Gemm> gemms() { return gemm_registry(); }

namespace {

/// The corners of the box that TMA's windows start in are 8 bits each, a stride 3.
bool fits_tma(const WindowGeometry& g) {
  bool fits = g.size[0] == 1 && g.window[0] == 1 && g.padding[0] == 0 && g.group_channels % 16 == 0 && g.channels % 16 == 0 &&
              g.first_channel % 16 == 0;
  for (int d = 1; d < 3; ++d) {
    fits = fits && g.padding[d] <= 127 && g.dilation[d] * (g.window[d] - 1) <= 127 && g.stride[d] <= 8;
  }
  return fits && g.samples * g.size[1] * g.size[2] <= INT_MAX;
}

}  // namespace

bool fits_gemms(const Product& product) {
  const int64_t element = product.type == Type::Float ? 4 : 2;
  const bool fits = product.windows != nullptr ? fits_tma(*product.windows) : product.k % 16 == 0;
  return fits && product.m > 0 && product.n > 0 && product.k > 0 && product.n * element % 16 == 0 &&
         product.m <= INT_MAX && product.n <= INT_MAX && product.k <= INT_MAX && is_aligned(product.a) &&
         is_aligned(product.b) && is_aligned(product.out);
}

}  // namespace te_int8::kernels
