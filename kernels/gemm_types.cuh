// What the files that CMake compiles once per output type share.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include "types.h"

namespace te_int8::kernels {

namespace outputs {
using float32 = float;
using half = cutlass::half_t;
using bfloat16 = cutlass::bfloat16_t;
}  // namespace outputs

template <typename>
constexpr Type kTypeOf = Type::Float;
template <>
constexpr Type kTypeOf<cutlass::half_t> = Type::Half;
template <>
constexpr Type kTypeOf<cutlass::bfloat16_t> = Type::BFloat16;

}  // namespace te_int8::kernels

#define TE_INT8_TEXT(x) #x
#define TE_INT8_VALUE(x) TE_INT8_TEXT(x)
