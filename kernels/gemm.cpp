#include "gemm.h"

#include <climits>

#include "gemm_registry.h"
#include "launch.h"

namespace te_int8::kernels {

std::vector<Gemm>& gemm_registry() {
  static auto* all = new std::vector<Gemm>;  // never destroyed: a backward may still come while the process ends
  return *all;
}

std::span<const Gemm> gemms() { return gemm_registry(); }

bool fits_gemms(const Product& product) {
  const int64_t element = product.type == Type::Float ? 4 : 2;
  return product.m > 0 && product.n > 0 && product.k > 0 && product.k % 16 == 0 && product.n * element % 16 == 0 &&
         product.m <= INT_MAX && product.n <= INT_MAX && product.k <= INT_MAX && is_aligned(product.a) &&
         is_aligned(product.b) && is_aligned(product.out);
}

}  // namespace te_int8::kernels
