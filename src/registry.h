#pragma once

#include <mutex>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// Held while scopes open and close: the module tree changes hands under it. Recursive, as a scope
/// that fails to open is undone while it is held.
std::recursive_mutex& registry_mutex();

}  // namespace te_int8::inline v0::detail
