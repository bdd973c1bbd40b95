// What the CUDA kernels share with their callers. They know raw pointers and a stream, and no Torch.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace te_int8::kernels {

enum class Type { Float, Half, BFloat16 };

}  // namespace te_int8::kernels
