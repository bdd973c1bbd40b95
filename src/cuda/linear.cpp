// A whole linear layer of few rows on CUDA tensors, by the kernel of kernels/linear.h.
#include "../../kernels/linear.h"

#include <ATen/TensorSubclassLikeUtils.h>

#include <te_int8/detail/few_rows.h>

#include "choose.h"
#include "device.h"
#include "epilogue.h"

namespace te_int8::inline v0::detail {
namespace {

constexpr const char* kName = "few rows, codes included";

bool is_wanted() {
  const auto backend = current_backend();
  if (backend != Backend::Auto && backend != Backend::Cutlass) return false;
  return cuda::may_be_chosen(kName) && !cuda::leave_to_reference() && cuda::capability() >= 80 && cuda::capability() <= 90;
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

bool fits_linear_of_few_rows(const at::Tensor& x, const at::Tensor& codes) {
  if (!x.is_cuda() || at::isTensorSubclassLike(x) || at::isTensorSubclassLike(codes)) return false;
  if (x.scalar_type() == at::kDouble || x.is_neg() || !x.is_contiguous() || !codes.is_contiguous()) return false;
  return kernels::fits_linear_of_few_rows(layer_of(x, codes)) && (cuda::OnDeviceOf(x), is_wanted());
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
