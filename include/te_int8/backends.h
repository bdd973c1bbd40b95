// Back ends: who computes the integer matmul and the quantization on a device.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <c10/core/DeviceType.h>

#include <te_int8/config.h>

namespace te_int8::inline v0 {

struct BackendInfo {
  std::string name;
  bool usable;         ///< on this machine, in this build
  std::string reason;  ///< why not, where it is not usable
};

/// The back ends of this build, in the order in which "auto" tries them on the devices that they are for.
TE_INT8_API std::vector<BackendInfo> backends();

namespace detail {

enum class Backend {
  Auto,       ///< the best one for the device
  Reference,  ///< plain LibTorch operations, on any device
  Cpu,        ///< src/cpu
  Cutlass,    ///< src/cuda, products by kernels/gemm_*.cu
  Cublaslt,   ///< src/cuda, products by cuBLASLt
};

/// The back end that `requested` (a Recipe's) names; for "auto" the one in TE_INT8_BACKEND, if any.
/// Raises for a name that is unknown or not usable.
TE_INT8_API Backend parse_backend(const std::string& requested);

/// The name of what computes on such a device where `backend` was asked for. Raises where it cannot.
TE_INT8_API std::string backend_name(Backend backend, c10::DeviceType device);

/// The back end that operations of the calling thread use: that of the innermost BackendScope, or else
/// what "auto" means.
TE_INT8_API Backend current_backend();

/// Sets it for the calling thread, for as long as it lives.
class TE_INT8_API BackendScope {
 public:
  explicit BackendScope(Backend backend);
  ~BackendScope();
  BackendScope(const BackendScope&) = delete;
  BackendScope& operator=(const BackendScope&) = delete;

 private:
  std::optional<Backend> before_;
};

}  // namespace detail
}  // namespace te_int8::inline v0
