// How the kernels' callers choose a template instance.
#pragma once

#include <algorithm>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "types.h"

namespace te_int8::kernels {

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__host__ __device__ inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

/// f(T()) with the type that `type` names; `otherwise` if it names none.
template <typename F, typename Result = cudaError_t>
Result with_type(Type type, const F& f, Result otherwise = cudaErrorInvalidValue) {
  switch (type) {
    case Type::Float: return f(float());
    case Type::Half: return f(__half());
    case Type::BFloat16: return f(__nv_bfloat16());
  }
  return otherwise;
}

/// f(std::bool_constant) with the value of `condition`.
template <typename F>
cudaError_t with_bool(bool condition, const F& f) {
  return condition ? f(std::true_type()) : f(std::false_type());
}

/// As many blocks as run at a time on `sms` multiprocessors, if there is work for them.
template <typename Kernel>
cudaError_t blocks_at_a_time(Kernel kernel, int threads, int sms, int64_t wanted, unsigned& blocks) {
  int on_each = 0;
  const auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&on_each, kernel, threads, 0);
  blocks = static_cast<unsigned>(std::min<int64_t>(wanted, int64_t{sms} * on_each));
  return error;
}

}  // namespace te_int8::kernels
