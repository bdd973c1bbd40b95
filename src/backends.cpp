#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include <c10/util/Exception.h>

#include <te_int8/backends.h>

namespace te_int8::inline v0 {

std::vector<BackendInfo> backends() {
  return {{.name = "reference", .usable = true, .reason = ""}};
}

namespace detail {

std::string resolve_backend(const std::string& requested) {
  std::string wanted = requested;
  const char* source = "Recipe::backend";
  if (wanted == "auto") {
    const char* environment = std::getenv("TE_INT8_BACKEND");
    if (environment != nullptr && *environment != '\0') {
      wanted = environment;
      source = "TE_INT8_BACKEND";
    }
  }
  std::ostringstream usable;
  for (const auto& backend : backends()) {
    if (backend.name == wanted || (wanted == "auto" && backend.usable)) {
      TORCH_CHECK_VALUE(
          backend.usable, "te_int8: back end '", wanted, "' (from ", source,
          ") cannot be used here: ", backend.reason);
      return backend.name;
    }
    if (backend.usable) usable << " '" << backend.name << "'";
  }
  TORCH_CHECK_VALUE(
      false, "te_int8: expected ", source,
      " to be 'auto' or one of this build's back ends:", usable.str(), ", got '", wanted, "'");
}

}  // namespace detail
}  // namespace te_int8::inline v0
