// BatchNorm::fold on CUDA tensors.
#include "../norms.h"

#include <algorithm>

#include "../../kernels/batch_norm.h"
#include "device.h"

namespace te_int8::inline v0::detail {

using at::Tensor;

std::optional<std::pair<Tensor, Tensor>> fold_by_kernel(
    const BatchNormTensors& norm, const Tensor& scales, const Tensor& bias) {
  const int64_t channels = norm.mean.size(0);
  const auto fits = [&](const Tensor& t) {
    return !t.defined() || (t.device() == scales.device() && t.is_contiguous() && t.sizes() == at::IntArrayRef{channels} &&
                            t.scalar_type() != at::kDouble && cuda::is_plain(t));
  };
  if (!scales.is_cuda() || !scales.is_contiguous() || !fits(norm.mean) || !fits(norm.variance) || !fits(norm.weight) ||
      !fits(norm.bias) || !fits(bias) || (scales.size(0) != 1 && scales.size(0) != channels)) {
    return std::nullopt;
  }
  const cuda::OnDeviceOf device(scales);
  if (cuda::leave_to_reference()) return std::nullopt;
  const auto values = [](const Tensor& t) {
    return t.defined() ? kernels::Values{t.const_data_ptr(), cuda::type_of(t.scalar_type())} : kernels::Values{};
  };
  const auto folded = at::empty({2, channels}, scales.options());
  auto* to = folded.mutable_data_ptr<float>();
  C10_CUDA_CHECK(kernels::fold_batch_norm(
      {values(norm.mean), values(norm.variance), values(norm.weight), values(norm.bias), static_cast<float>(norm.eps),
       scales.const_data_ptr<float>(), scales.size(0) == 1 ? 0 : 1, values(bias)},
      channels, to, to + channels, device.stream()));
  return std::pair(folded[0], folded[1]);
}

}  // namespace te_int8::inline v0::detail
