#pragma once

#include <torch/library.h>

namespace te_int8::inline v0::detail {

/// Registers kernels of kRoutingKey for convolutions.
void install_convolutions(torch::Library& aten);

}  // namespace te_int8::inline v0::detail
