// Note [Deferred bias]
//
// LinearImpl::forward computes x.matmul(W^T) and then `output += bias` for every input that is not
// 2-D. Added in a separate pass the bias costs a pass over memory, and in bf16 a second rounding,
// so that 2-D and N-D inputs would disagree. Therefore the routed matmul returns a tensor whose
// values are still owed: a TensorImpl with sizes, dtype and autograd history but no storage yet,
// and one extra dispatch key. The first thing that happens to it settles it, in place:
//   - add_ of the layer's own bias: values with the bias in the epilogue, and the history of a 2-D call:
//     the bias becomes an input of the product's node, whose backward finds db where it reads dy anyway;
//   - any other operation, or an access to its storage or data pointer: values without bias.
#pragma once

#include <functional>
#include <vector>

#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// The dispatch key that a scope opens for its threads (Note [Routing] in src/routing.cpp).
inline constexpr auto kRoutingKey = c10::DispatchKey::DeferredInit;
/// The extra key of a tensor whose values are owed. It lies above kRoutingKey, and no part of
/// LibTorch but its own tests of the dispatcher uses it.
inline constexpr auto kDeferredKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

/// Computes the values: with `bias` in the epilogue, or without where it is undefined.
using DeferredCompute = std::function<at::Tensor(const at::Tensor& bias)>;

/// A tensor of these sizes whose values `compute` gives when somebody needs them, with one of
/// `biases` ([N]) if the first operation on it is to add that.
TE_INT8_API at::Tensor make_deferred(
    at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device, std::vector<at::Tensor> biases,
    DeferredCompute compute);

/// Registers the kernels of kDeferredKey, once in a process.
void install_deferred_kernels();

}  // namespace te_int8::inline v0::detail
