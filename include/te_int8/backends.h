// Back ends: who computes the integer matmul and the quantization on a device.
#pragma once

#include <string>
#include <vector>

#include <te_int8/config.h>

namespace te_int8::inline v0 {

struct BackendInfo {
  std::string name;
  bool usable;         ///< on this machine, in this build
  std::string reason;  ///< why not, where it is not usable
};

/// The back ends of this build, in the order in which "auto" tries them.
TE_INT8_API std::vector<BackendInfo> backends();

namespace detail {
/// The back end that `requested` (a Recipe's) stands for: a name, or "auto" for the one in
/// TE_INT8_BACKEND, else the first usable one. Raises for a name that is unknown or not usable.
TE_INT8_API std::string resolve_backend(const std::string& requested);
}  // namespace detail

}  // namespace te_int8::inline v0
