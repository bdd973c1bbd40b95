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
  at::Tensor y, codes, scales, inverses;

  kernels::Made get() const {
    const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; };
    return {
        y.defined() ? y.mutable_data_ptr() : nullptr, codes.defined() ? codes.mutable_data_ptr<int8_t>() : nullptr,
        pointer(scales), pointer(inverses)};
  }
};

at::Tensor values_like(const at::Tensor& x, at::ScalarType dtype) { return at::empty(x.sizes(), x.options().dtype(dtype)); }

at::Tensor one_a_row(const at::Tensor& x) {
  return at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat));
}

/// Of values on a GPU, as the kernels take them.
bool is_dense(const at::Tensor& x) {
  constexpr uintptr_t kAlignment = 16;
  return x.is_cuda() && cuda::is_plain(x) && x.dim() > 0 && x.numel() > 0 && x.is_contiguous() &&
         reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kAlignment == 0;
}

Results make_again(const CodesSource& source, bool codes) {
  const auto& inputs = source.inputs;
  const bool is_norm = source.kind == Kind::LayerNorm;
  const auto& x = inputs[is_norm ? 0 : 2];
  const cuda::OnDeviceOf device(x);
  Results results;
  (codes ? results.codes : results.y) = values_like(x, codes ? at::kChar : source.dtype);
  const auto type = cuda::type_of(source.dtype);
  const int64_t width = x.size(-1), rows = x.numel() / width;
  if (is_norm) {
    if (codes) results.scales = one_a_row(x);
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
    return results;
  }
  results.scales = inputs[0];
  results.inverses = inputs[1];
  C10_CUDA_CHECK(
      x.scalar_type() == at::kChar
          ? kernels::activate_codes_again(
                kernel_of(source.kind), type, x.const_data_ptr<int8_t>(), inputs[3].const_data_ptr<float>(), rows, width,
                cuda::multiprocessors(), results.get(), device.stream())
          : kernels::activate_again(
                kernel_of(source.kind), type, x.const_data_ptr(), rows, width, cuda::multiprocessors(), results.get(),
                device.stream()));
  return results;
}

}  // namespace

bool fits_activations(const at::Tensor& x) {
  const auto type = x.scalar_type();
  if (type != at::kFloat && type != at::kHalf && type != at::kBFloat16) return false;
  if (!is_dense(x)) return false;
  const cuda::OnDeviceOf device(x);
  return kernels::fits_activations(cuda::type_of(type), x.size(-1)) && !cuda::leave_to_reference();
}

Activated activate(Kind f, const at::Tensor& x) {
  const cuda::OnDeviceOf device(x);
  const Results results{
      values_like(x, x.scalar_type()), values_like(x, at::kChar), one_a_row(x), one_a_row(x)};
  const int64_t width = x.size(-1);
  C10_CUDA_CHECK(kernels::activate(
      kernel_of(f), cuda::type_of(x.scalar_type()), x.const_data_ptr(), x.numel() / width, width, cuda::multiprocessors(),
      results.get(), device.stream()));
  return {results.y, {results.codes, results.scales}, results.inverses};
}

std::optional<CodesOfGradient> differentiate(
    Kind f, const at::Tensor& dy, const std::vector<at::Tensor>& held, const WantedCodes& wanted) {
  const auto& x = held[0];
  const bool of_codes = x.scalar_type() == at::kChar;
  if (!wanted.by_row || dy.scalar_type() != at::kBFloat16 || (!of_codes && x.scalar_type() != at::kBFloat16)) return {};
  if (!is_dense(dy) || !is_dense(x) || x.sizes() != dy.sizes() || x.device() != dy.device()) return {};
  const cuda::OnDeviceOf device(dy);
  const int64_t width = dy.size(-1), rows = dy.numel() / width;
  const int sms = cuda::multiprocessors();
  if (!kernels::fits_activation_gradient(kernels::Type::BFloat16, rows, width, sms) || cuda::leave_to_reference()) return {};

  const auto empty = [&](at::IntArrayRef sizes, at::ScalarType dtype) { return at::empty(sizes, dy.options().dtype(dtype)); };
  const auto codes = empty({rows, width}, at::kChar), scales = empty({rows}, at::kFloat);
  CodesOfGradient made{std::make_shared<Operand>(codes, scales, OperandForm::RowCodes), {}, {}};
  const kernels::ActivationGradient gradient{
      .f = kernel_of(f),
      .x = of_codes ? nullptr : x.const_data_ptr(),
      .x_codes = of_codes ? x.const_data_ptr<int8_t>() : nullptr,
      .x_scales = of_codes ? held[1].const_data_ptr<float>() : nullptr,
      .dy = dy.mutable_data_ptr(),
      .rows = rows,
      .width = width,
      .codes = codes.mutable_data_ptr<int8_t>(),
      .scales = scales.mutable_data_ptr<float>()};
  if (wanted.by_column) {
    made.column_amax = empty({width}, at::kInt);
    auto* amax = reinterpret_cast<uint32_t*>(made.column_amax.mutable_data_ptr<int32_t>());
    C10_CUDA_CHECK(kernels::activation_gradient_finding_maxima(gradient, sms, amax, device.stream()));
  } else {
    const auto bytes = wanted.column_sums ? kernels::activation_gradient_workspace(rows, width) : 0;
    const auto workspace = empty({static_cast<int64_t>(bytes)}, at::kByte);
    if (wanted.column_sums) made.column_sums = empty({width}, at::kFloat);
    auto* sums = wanted.column_sums ? made.column_sums.mutable_data_ptr<float>() : nullptr;
    C10_CUDA_CHECK(kernels::activation_gradient(gradient, sms, workspace.mutable_data_ptr(), sums, device.stream()));
  }
  return made;
}

ops::Codes CodesSource::make() const {
  const auto made = make_again(*this, /*codes=*/true);
  return {made.codes, made.scales};
}

at::Tensor CodesSource::make_values() const { return make_again(*this, /*codes=*/false).y; }

}  // namespace te_int8::inline v0::detail
