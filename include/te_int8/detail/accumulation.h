// Accumulation into a gradient that exists, in the product that makes what is added.
#pragma once

#include <cstddef>
#include <functional>

#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// In a backward of first order, in the place of LibTorch's accumulator at the end of the current node's `edge`: calls `add` with
/// the gradient of its leaf. False, and nothing is done, unless that is all that the accumulator would do, and nobody could tell:
/// there is a gradient, on a GPU, on whose stream this is; this backward is to leave its gradients in leaves (not
/// torch::autograd::grad); no hook waits for the new gradient; LibTorch does not look for NaN.
TE_INT8_API bool add_to_gradient(std::size_t edge, const std::function<void(at::Tensor& gradient)>& add);

}  // namespace te_int8::inline v0::detail
