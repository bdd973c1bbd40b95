// Where there is no CUDA code, no device computes a layer of few rows in one kernel; else see cuda/linear.cpp.
#ifndef TE_INT8_WITH_CUDA
#include <te_int8/detail/few_rows.h>

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

}  // namespace te_int8::inline v0::detail
#endif
