#include <te_int8/backends.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <sstream>

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#ifdef TE_INT8_WITH_CUDA
#include "cuda/device.h"
#endif

namespace te_int8::inline v0 {

namespace {

using detail::Backend;

struct Entry {
  Backend backend;
  const char* name;
  std::optional<c10::DeviceType> device;  ///< none: any
};

/// In the order in which "auto" tries them.
constexpr std::array<Entry, 4> kEntries{{
    {Backend::Cpu, "cpu", c10::DeviceType::CPU},
    {Backend::Cutlass, "cutlass", c10::DeviceType::CUDA},
    {Backend::Cublaslt, "cublaslt", c10::DeviceType::CUDA},
    {Backend::Reference, "reference", std::nullopt},
}};

#ifdef TE_INT8_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

std::string obstacle(const Entry& entry) {
  if (entry.device != c10::DeviceType::CUDA) return "";
  if (!kWithCuda) return "te_int8 was built without CUDA";
  if (!at::hasCUDA()) return "LibTorch sees no CUDA device";
#ifdef TE_INT8_WITH_CUDA
  return cuda::obstacle_to(entry.backend);
#else
  return "";
#endif
}

thread_local std::optional<Backend> backend_of_thread;

}  // namespace

std::vector<BackendInfo> backends() {
  std::vector<BackendInfo> result;
  for (const auto& entry : kEntries) {
    auto reason = obstacle(entry);
    result.push_back({.name = entry.name, .usable = reason.empty(), .reason = std::move(reason)});
  }
  return result;
}

namespace detail {

Backend parse_backend(const std::string& requested) {
  std::string wanted = requested;
  const char* source = "Recipe::backend";
  if (wanted == "auto") {
    const char* environment = std::getenv("TE_INT8_BACKEND");
    if (environment == nullptr || *environment == '\0') return Backend::Auto;
    wanted = environment;
    source = "TE_INT8_BACKEND";
    if (wanted == "auto") return Backend::Auto;
  }
  std::ostringstream names;
  for (const auto& entry : kEntries) {
    if (wanted == entry.name) {
      const auto reason = obstacle(entry);
      TORCH_CHECK_VALUE(
          reason.empty(), "te_int8: expected ", source, " to be a back end that is usable here, got '", wanted,
          "': ", reason);
      return entry.backend;
    }
    names << " '" << entry.name << "'";
  }
  TORCH_CHECK_VALUE(
      false, "te_int8: expected ", source, " to be 'auto' or one of this build's back ends:", names.str(),
      ", got '", wanted, "'");
}

std::string backend_name(Backend backend, c10::DeviceType device) {
  for (const auto& entry : kEntries) {
    const bool fits = !entry.device || *entry.device == device;
    if (backend == Backend::Auto ? !fits || !obstacle(entry).empty() : backend != entry.backend) continue;
    TORCH_CHECK_VALUE(
        fits, "te_int8: expected a back end for ", device, ", got '", entry.name, "', which is for ",
        *entry.device);
    return entry.name;
  }
  TORCH_INTERNAL_ASSERT(false, "te_int8: a back end without an entry");
}

Backend current_backend() {
  return backend_of_thread ? *backend_of_thread : parse_backend("auto");
}

BackendScope::BackendScope(Backend backend) : before_(backend_of_thread) {
  backend_of_thread = backend;
}

BackendScope::~BackendScope() { backend_of_thread = before_; }

}  // namespace detail
}  // namespace te_int8::inline v0
