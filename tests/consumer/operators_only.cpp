// A program that uses nothing of te_int8 but its operations: the linker must keep the library.
#include <cstdio>

#include <te_int8/operators.h>

int main() {
  const auto [codes, scales] = te_int8::ops::quantize_rows(torch::ones({2, 8}));
  const auto y = te_int8::ops::scaled_mm(codes, codes, scales, scales);
  if (std::abs(y[1][1].item<float>() - 8) > 1e-5F) {
    std::fprintf(stderr, "expected 8, got %g\n", static_cast<double>(y[1][1].item<float>()));
    return 1;
  }
  std::puts("the operations are registered");
}
