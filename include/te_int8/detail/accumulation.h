// Accumulation into a gradient that exists, in the product that makes what is added.
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// In a backward of first order: the gradient that LibTorch's accumulator at the end of `edge` is to add to, where it would
/// do that and nothing else, so that the backward may add to it itself and send nothing: on a GPU, on its stream, with
/// nobody's hook in between, and not for torch::autograd::grad. Undefined otherwise.
TE_INT8_API at::Tensor gradient_to_add_to(const torch::autograd::Edge& edge);

}  // namespace te_int8::inline v0::detail
