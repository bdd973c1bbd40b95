// Codes that come with an activation: of functions and layer normalizations whose kernel leaves them, or finds them from
// what autograd holds anyway.
#pragma once

#include <optional>
#include <vector>

#include <torch/types.h>

#include <te_int8/detail/gradient_codes.h>
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

/// dx = dy f'(x) as LibTorch computes it, bit for bit, written over dy, and of it what the kernel finds on its way: codes by row,
/// and the maxima of the columns where codes by column are wanted, else their sums where those are. `held` is x, of Relu y, or
/// the codes of x by row and their scales. None, and dy is as before, where no kernel takes it.
std::optional<CodesOfGradient> differentiate(
    CodesSource::Kind f, const at::Tensor& dy, const std::vector<at::Tensor>& held, const WantedCodes& wanted);

}  // namespace te_int8::inline v0::detail
