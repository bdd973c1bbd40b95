#pragma once

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// Registers the kernels of kRoutingKey, once in a process. Raises if another library holds the
/// key.
void install_routing_kernels();

}  // namespace te_int8::inline v0::detail
