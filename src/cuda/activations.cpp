// Activations and their codes on CUDA tensors, by the kernels of kernels/activations.h.
#include "../../kernels/activations.h"

#include <utility>

#include "../activations.h"
#include "device.h"

namespace te_int8::inline v0::detail {
namespace {

using Kind = CodesSource::Kind;

kernels::Activation kernel_of(Kind f) {
  switch (f) {
    case Kind::Gelu: return kernels::Activation::Gelu;
    case Kind::GeluTanh: return kernels::Activation::GeluTanh;
    case Kind::Relu: return kernels::Activation::Relu;
    case Kind::Silu: return kernels::Activation::Silu;
    case Kind::LayerNorm: break;
  }
  TORCH_INTERNAL_ASSERT(false, "not a function of single values");
}

/// y, its codes, or both.
struct Results {
  at::Tensor y;
  ops::Codes codes;

  Results(const at::Tensor& x, at::ScalarType dtype, bool values, bool with_codes) {
    if (values) y = at::empty(x.sizes(), x.options().dtype(dtype));
    if (!with_codes) return;
    codes = {
        at::empty(x.sizes(), x.options().dtype(at::kChar)),
        at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat))};
  }
  kernels::Made get() const {
    const auto& [made, scales] = codes;
    return {
        y.defined() ? y.mutable_data_ptr() : nullptr, made.defined() ? made.mutable_data_ptr<int8_t>() : nullptr,
        scales.defined() ? scales.mutable_data_ptr<float>() : nullptr};
  }
};

Results make(const CodesSource& source, bool values, bool with_codes) {
  const auto& inputs = source.inputs;
  const auto& x = inputs[0];
  const cuda::OnDeviceOf device(x);
  Results results(x, source.dtype, values, with_codes);
  const auto type = cuda::type_of(source.dtype);
  const int64_t width = x.size(-1), rows = x.numel() / width;
  if (source.kind == Kind::LayerNorm) {
    const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
    const kernels::LayerNorm norm{
        .type = type,
        .x = x.const_data_ptr(),
        .mean = inputs[1].const_data_ptr<float>(),
        .rstd = inputs[2].const_data_ptr<float>(),
        .gamma = pointer(inputs[3]),
        .beta = pointer(inputs[4]),
        .rows = rows,
        .width = width};
    C10_CUDA_CHECK(kernels::layer_norm(norm, results.get(), device.stream()));
  } else if (x.scalar_type() == at::kChar) {
    C10_CUDA_CHECK(kernels::activate_codes(
        kernel_of(source.kind), type, x.const_data_ptr<int8_t>(), inputs[1].const_data_ptr<float>(), rows, width,
        cuda::multiprocessors(), results.get(), device.stream()));
  } else {
    C10_CUDA_CHECK(kernels::activate(
        kernel_of(source.kind), type, x.const_data_ptr(), rows, width, cuda::multiprocessors(), results.get(), device.stream()));
  }
  return results;
}

}  // namespace

bool fits_activations(const at::Tensor& x) {
  const auto type = x.scalar_type();
  if (!x.is_cuda() || !cuda::is_plain(x)) return false;
  if (type != at::kFloat && type != at::kHalf && type != at::kBFloat16) return false;
  if (x.dim() == 0 || x.numel() == 0 || !x.is_contiguous()) return false;
  constexpr uintptr_t kAlignment = 16;
  if (reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kAlignment != 0) return false;
  const cuda::OnDeviceOf device(x);
  return kernels::fits_activations(cuda::type_of(type), x.size(-1)) && !cuda::leave_to_reference();
}

Activated activate(Kind f, const at::Tensor& x) {
  auto [y, codes] = make({f, x.scalar_type(), {x}}, /*values=*/true, /*with_codes=*/true);
  return {std::move(y), std::move(codes)};
}

ops::Codes CodesSource::make() const { return detail::make(*this, /*values=*/false, /*with_codes=*/true).codes; }

at::Tensor CodesSource::make_values() const { return detail::make(*this, /*values=*/true, /*with_codes=*/false).y; }

}  // namespace te_int8::inline v0::detail
