#pragma once

#include <torch/library.h>

namespace te_int8::inline v0::detail {

/// Registers kernels of kRoutingKey for the operations whose results quantized layers read.
void install_producers(torch::Library& aten);

}  // namespace te_int8::inline v0::detail
