// The public header in a CUDA source, beside a kernel, as users have it.
#include <te_int8/te_int8.h>

__global__ void kernel(float* x) { *x = 0.0f; }

void launch(torch::nn::Module& model, float* x) {
  te_int8::AutocastGuard guard(model, te_int8::Mode::QAT);
  kernel<<<1, 1>>>(x);
}
