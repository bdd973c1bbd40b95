// The kernels of kRoutingKey: see Note [Routing] in routing.cpp.
#pragma once

#include <torch/library.h>

#include <te_int8/detail/deferred.h>

namespace te_int8::inline v0::detail {

/// Where a call goes that no layer of a scope computes.
inline constexpr c10::DispatchKeySet kBelowRouting(c10::DispatchKeySet::FULL_AFTER, kRoutingKey);

/// Registers them, once in a process. Raises if another library holds the key.
void install_routing_kernels();

/// Those of convolutions (convolutions.cpp), of embeddings (embeddings.cpp), of batch norms (norms.cpp), and of the operations
/// whose results quantized layers read (producers.cpp).
void install_convolutions(torch::Library& aten);
void install_embeddings(torch::Library& aten);
void install_norms(torch::Library& aten);
void install_producers(torch::Library& aten);

}  // namespace te_int8::inline v0::detail
