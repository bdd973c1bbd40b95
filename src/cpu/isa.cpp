#include "isa.h"

#include <cstdlib>
#include <string>

#include <c10/util/Exception.h>

namespace te_int8::cpu {

#if defined(__x86_64__)
namespace avx512_vnni {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace plain {
extern const Kernels kernels;
}

namespace {

struct Candidate {
  const Kernels* kernels;
  bool usable;
};

const Kernels& choose() {
  const Candidate candidates[] = {
#if defined(__x86_64__)
      {&avx512_vnni::kernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni")},
      {&avx2::kernels,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
      {&plain::kernels, true},
  };
  const char* forced = std::getenv("TE_INT8_CPU_ISA");
  const std::string wanted = forced == nullptr ? "" : forced;
  std::string names;
  for (const auto& candidate : candidates) {
    if (wanted.empty() ? candidate.usable : wanted == candidate.kernels->name) {
      TORCH_CHECK_VALUE(
          candidate.usable, "te_int8: expected TE_INT8_CPU_ISA to name an instruction set of this processor, got '",
          wanted, "', which it lacks");
      return *candidate.kernels;
    }
    names += std::string(names.empty() ? "" : ", ") + candidate.kernels->name;
  }
  TORCH_CHECK_VALUE(
      false, "te_int8: expected TE_INT8_CPU_ISA to be one of ", names, ", got '", wanted, "'");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace te_int8::cpu
