// A whole linear layer of few rows on CUDA tensors, by the kernel of kernels/linear.h.
#include "../../kernels/linear.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include <te_int8/detail/few_rows.h>

#include "choose.h"
#include "device.h"
#include "epilogue.h"

namespace te_int8::inline v0::detail {
namespace {

constexpr std::string_view kName = "few rows, codes included";

bool is_wanted() {
  const auto backend = current_backend();
  if (backend != Backend::Auto && backend != Backend::Cutlass) return false;
  return cuda::may_be_chosen(kName) && !cuda::leave_to_reference() && cuda::capability() <= 90;
}

kernels::Linear layer_of(const at::Tensor& x, const at::Tensor& codes) {
  const int64_t depth = codes.size(1);
  return {
      .x = x.const_data_ptr(),
      .x_type = cuda::type_of(x.scalar_type()),
      .b = codes.const_data_ptr<int8_t>(),
      .m = depth == 0 ? 0 : x.numel() / depth,
      .n = codes.size(0),
      .k = depth};
}

}  // namespace

bool fits_linear_of_few_rows(
    const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales, const std::optional<at::Tensor>& bias) {
  const auto is_one_of = [](const at::Tensor& t, std::initializer_list<at::ScalarType> types) {
    return std::ranges::find(types, t.scalar_type()) != types.end();
  };
  const auto is_plain_here = [&](const at::Tensor& t) { return t.device() == x.device() && cuda::is_plain(t); };
  if (!x.is_cuda() || !cuda::is_plain(x) || !is_plain_here(codes) || !is_plain_here(scales)) return false;
  if (!is_one_of(x, {at::kFloat, at::kHalf, at::kBFloat16}) || !x.is_contiguous() || !codes.is_contiguous()) return false;
  if (bias && (!is_plain_here(*bias) || bias->dim() != 1 || bias->size(0) != codes.size(0) ||
               !is_one_of(*bias, {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}))) {
    return false;
  }
  const cuda::OnDeviceOf device(x);
  return kernels::fits_linear_of_few_rows(layer_of(x, codes)) && is_wanted();
}

at::Tensor linear_of_few_rows(
    const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales, const std::optional<at::Tensor>& bias,
    at::ScalarType dtype) {
  const cuda::OnDeviceOf device(x);
  auto sizes = x.sizes().vec();
  sizes.back() = codes.size(0);
  auto result = at::empty(sizes, x.options().dtype(dtype == at::kDouble ? at::kFloat : dtype));
  const cuda::DenseEpilogue epilogue({}, scales, bias);
  auto layer = layer_of(x, codes);
  layer.epilogue = epilogue.get();
  layer.type = cuda::type_of(result.scalar_type());
  layer.out = result.mutable_data_ptr();
  C10_CUDA_CHECK(kernels::linear_of_few_rows(layer, cuda::multiprocessors(), device.stream()));
  return result.to(dtype);
}

}  // namespace te_int8::inline v0::detail
