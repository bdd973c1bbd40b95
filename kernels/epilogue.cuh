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
constexpr float kNoBias = -0.0F;  ///< leaves the sign of a zero alone

__device__ inline float bias_value(const void* values, Type type, int64_t i) {
  switch (type) {
    case Type::Half: return to_float(static_cast<const __half*>(values)[i]);
    case Type::BFloat16: return to_float(static_cast<const __nv_bfloat16*>(values)[i]);
    case Type::Float: break;
  }
  return static_cast<const float*>(values)[i];
}
__device__ inline float bias_at(const Epilogue& epilogue, int64_t column) {
  return epilogue.bias == nullptr ? kNoBias : bias_value(epilogue.bias, epilogue.bias_type, column);
}

__device__ inline float epilogue_formula(int32_t sum, float a_scale, float b_scale, float bias) {
  return __fmaf_rn(b_scale, __fmul_rn(__int2float_rn(sum), a_scale), bias);
}

__device__ inline float epilogue_of(const Epilogue& epilogue, int32_t sum, int64_t row, int64_t column) {
  return epilogue_formula(sum, a_scale_at(epilogue, row), b_scale_at(epilogue, column), bias_at(epilogue, column));
}

/// Stores at element `at` of `out`, rounded to its type.
__device__ inline void store_result(Type type, void* out, int64_t at, float value) {
  switch (type) {
    case Type::Half: static_cast<__half*>(out)[at] = __float2half_rn(value); break;
    case Type::BFloat16: static_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16_rn(value); break;
    case Type::Float: static_cast<float*>(out)[at] = value; break;
  }
}

}  // namespace te_int8::kernels
