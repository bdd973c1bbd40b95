// Where each instance of a kernel, a file of its own for the sake of compile time, makes itself known.
#pragma once

#include <vector>

#include "gemm.h"

namespace te_int8::kernels {

std::vector<Gemm>& gemm_registry();

}  // namespace te_int8::kernels
