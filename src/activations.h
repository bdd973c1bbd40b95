// Codes that come with an activation: of functions and layer normalizations whose kernel leaves them, or finds them from
// what autograd holds anyway.
#pragma once

#include <torch/types.h>

#include <te_int8/detail/operand.h>

namespace te_int8::inline v0::detail {

/// Whether the functions below take x [*,K], on its device and by the back end in force.
bool fits_activations(const at::Tensor& x);

/// y = f(x) as LibTorch computes it, bit for bit, and quantize_rows(y).
struct Activated {
  at::Tensor y;
  ops::Codes codes;
  at::Tensor inverses;  ///< of the scales: what values are multiplied by
};
Activated activate(CodesSource::Kind f, const at::Tensor& x);

}  // namespace te_int8::inline v0::detail
