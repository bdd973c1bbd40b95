// Which instruction set the kernels of the back end "cpu" use.
#pragma once

#include "kernels.h"

namespace te_int8::cpu {

/// The kernels of the best instruction set that this processor has, or of the one that TE_INT8_CPU_ISA
/// names: "avx512_vnni", "avx2" or "plain". Errors: an unknown name, or one that the processor lacks.
const Kernels& kernels();

}  // namespace te_int8::cpu
