#pragma once

#include <torch/library.h>

namespace te_int8::inline v0::detail {

/// Registers a kernel of kRoutingKey for embeddings.
void install_embeddings(torch::Library& aten);

}  // namespace te_int8::inline v0::detail
