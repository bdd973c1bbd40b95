// The formula of the epilogue on the device; CUTLASS's kernels compose the same of CUTLASS's parts.
#pragma once

#include "dequantize.h"
#include "numbers.cuh"

namespace te_int8::kernels {

__device__ inline float a_scale_at(const Epilogue& epilogue, int64_t row) {
  return epilogue.a_scales == nullptr ? 1.0F : epilogue.a_scales[row * epilogue.a_step];
}
__device__ inline float b_scale_at(const Epilogue& epilogue, int64_t column) {
  return epilogue.b_scales == nullptr ? 1.0F : epilogue.b_scales[column * epilogue.b_step];
}
__device__ inline float bias_at(const Epilogue& epilogue, int64_t column) {
  if (epilogue.bias == nullptr) return -0.0F;  // leaves the sign of a zero alone
  switch (epilogue.bias_type) {
    case Type::Half: return to_float(static_cast<const __half*>(epilogue.bias)[column]);
    case Type::BFloat16: return to_float(static_cast<const __nv_bfloat16*>(epilogue.bias)[column]);
    case Type::Float: break;
  }
  return static_cast<const float*>(epilogue.bias)[column];
}

__device__ inline float epilogue_formula(int32_t sum, float a_scale, float b_scale, float bias) {
  return __fmaf_rn(b_scale, __fmul_rn(__int2float_rn(sum), a_scale), bias);
}

__device__ inline float epilogue_of(const Epilogue& epilogue, int32_t sum, int64_t row, int64_t column) {
  return epilogue_formula(sum, a_scale_at(epilogue, row), b_scale_at(epilogue, column), bias_at(epilogue, column));
}

}  // namespace te_int8::kernels
