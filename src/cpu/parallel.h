// What quantize.cpp and multiply.cpp share: the back end in force, types, and work split among LibTorch's threads.
// Only files compiled with OpenMP may include it: elsewhere at::parallel_for runs on one thread.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <te_int8/backends.h>

#include "kernels.h"

namespace te_int8::cpu {

/// Asked for the reference, and for nothing else, these kernels leave a tensor of the CPU to it.
inline bool leave_to_reference() { return detail::current_backend() == detail::Backend::Reference; }

constexpr int64_t kWorkPerTask = 32768;  ///< elements, below which a thread is not worth starting

inline Type type_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Type::Float;
    case at::kBFloat16: return Type::BFloat16;
    case at::kHalf: return Type::Half;
    case at::kDouble: return Type::Double;
    default: return Type::Int32;
  }
}

/// Nearest even, and denormals kept, as the number format has it, whatever a thread has set for itself (a rounding
/// mode, torch::set_flush_denormal).
class DefaultFloats {
 public:
#if defined(__x86_64__)
  DefaultFloats() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloats() { _mm_setcsr(saved_); }
#else
  DefaultFloats() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&saved_); }
#endif
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

/// f(begin, end) for parts of [0, count), on LibTorch's threads.
template <typename F>
void in_parallel(int64_t count, int64_t grain, const F& f) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const DefaultFloats floats;
    f(begin, end);
  });
}

/// How many things of so much work each are worth a thread.
inline int64_t grain(int64_t work_of_one) {
  return std::max<int64_t>(1, kWorkPerTask / std::max<int64_t>(1, work_of_one));
}

}  // namespace te_int8::cpu
