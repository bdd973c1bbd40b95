// Products of codes with their epilogue in one kernel.
#pragma once

#include <span>

#include "dequantize.h"
#include "types.h"

namespace te_int8::kernels {

struct WindowGeometry;

/// out [m, n] = epilogue(a [m, k] x b [n, k]), all contiguous; or added to what out holds, which is then in the place of
/// the bias: rounded once.
struct Product {
  const int8_t *a, *b;
  int64_t m, n, k;
  Epilogue epilogue;
  Type type;
  void* out;
  bool accumulate = false;  ///< without a bias
  /// Where set, `a` is not a matrix but codes [N,*,C], whose windows (windows.h) are its rows, and a_scales has one a sample.
  const WindowGeometry* windows = nullptr;
};

inline constexpr int64_t kAnyRows = INT64_MAX;

/// A kernel with all that can be chosen about it.
struct Gemm {
  const char* name;       ///< "pingpong 128x128 c2x1"
  int oldest = 0, newest = 0;  ///< compute capabilities of the GPUs it is for, 90 for 9.0
  int64_t fewest_rows, most_rows;  ///< values of m for which it is worth a try
  Type type = Type::Float;  ///< of `out`
  bool along_m = false;     ///< whether tiles are computed down the columns first
  int swizzle = 1;          ///< tiles of the other direction that go together
  cudaError_t (*launch)(const Product& product, const Gemm& how, int sms, cudaStream_t stream);
  bool accumulates = false;  ///< for products that do, and only for those
  bool windows = false;      ///< likewise
};

/// Every kernel of this build, in no order.
std::span<const Gemm> gemms();

/// Whether these kernels can read and write it: K (of windows: channels) and rows of `out` of whole 16 bytes, aligned addresses,
/// sizes that an int holds; of windows: two dimensions, and what TMA's im2col mode can walk.
bool fits_gemms(const Product& product);

}  // namespace te_int8::kernels
