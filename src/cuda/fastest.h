// The fastest of the ways to compute a product, by timing them.
#pragma once

#include <functional>
#include <variant>
#include <vector>

#include "../../kernels/gemm.h"
#include "cublaslt.h"

namespace te_int8::cuda {

/// A kernel with everything in it, or a way of cuBLASLt and an epilogue after it.
using Candidate = std::variant<const kernels::Gemm*, Algorithm>;

/// All of them in turns; then the best two of each family again. Large products are bound by power: in turns all have the
/// clock that their mean power allows, and what counts is how many cycles they take; by itself a kernel that takes more
/// cycles with less power is perhaps the faster one. So those are timed in the two states that programs leave a GPU in,
/// rested and busy, and the choice has the least sum (docs/design.md).
///
/// `run` launches one on `stream`, which is waited for; a candidate that raises is out, and where all do the last error is
/// raised. `cold`: operands come from memory at every call, as weights do in decoding.
Candidate fastest(
    const std::vector<Candidate>& candidates, cudaStream_t stream, bool cold,
    const std::function<void(const Candidate&)>& run);

}  // namespace te_int8::cuda
