// What only a GPU's kernels do, where this build has none; else see the files of cuda/.
#ifndef TE_INT8_WITH_CUDA
#include <te_int8/detail/few_rows.h>

#include "activations.h"
#include "norms.h"

namespace te_int8::inline v0::detail {

bool fits_linear_of_few_rows(
    const at::Tensor& /*x*/, const at::Tensor& /*codes*/, const at::Tensor& /*scales*/,
    const std::optional<at::Tensor>& /*bias*/) {
  return false;
}

at::Tensor linear_of_few_rows(
    const at::Tensor& /*x*/, const at::Tensor& /*codes*/, const at::Tensor& /*scales*/,
    const std::optional<at::Tensor>& /*bias*/, at::ScalarType /*dtype*/) {
  TORCH_INTERNAL_ASSERT(false, "fits_linear_of_few_rows was not asked");
}

bool fits_activations(const at::Tensor& /*x*/) { return false; }

Activated activate(CodesSource::Kind /*f*/, const at::Tensor& /*x*/) {
  TORCH_INTERNAL_ASSERT(false, "fits_activations was not asked");
}

std::optional<CodesOfGradient> differentiate(
    CodesSource::Kind /*f*/, const at::Tensor& /*dy*/, const std::vector<at::Tensor>& /*held*/, const WantedCodes& /*wanted*/) {
  return std::nullopt;
}

std::optional<std::pair<at::Tensor, at::Tensor>> fold_by_kernel(
    const BatchNormTensors& /*norm*/, const at::Tensor& /*scales*/, const at::Tensor& /*bias*/) {
  return std::nullopt;
}

Operand::Both complete_codes(const at::Tensor& /*dy*/, CodesOfGradient /*made*/, bool /*column_sums*/) {
  TORCH_INTERNAL_ASSERT(false, "differentiate has found no maxima");
}

ops::Codes CodesSource::make() const { TORCH_INTERNAL_ASSERT(false, "fits_activations was not asked"); }

at::Tensor CodesSource::make_values() const { TORCH_INTERNAL_ASSERT(false, "fits_activations was not asked"); }

}  // namespace te_int8::inline v0::detail
#endif
