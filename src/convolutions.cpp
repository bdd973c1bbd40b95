// Note [Routing] in routing.cpp, for convolutions. conv1d to conv3d are caught as well as the convolution that they come
// down to, as autocast stands between the two.
#include "routing.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/torch.h>

#include <te_int8/detail/convolution_layer.h>
#include <te_int8/detail/scope.h>

namespace te_int8::inline v0::detail {
namespace {

using at::Tensor;
using c10::SymInt, c10::SymIntArrayRef;
using OptionalTensor = std::optional<Tensor>;

/// One value for each spatial dimension, of one for all of them or as many; none where a size is not known.
std::optional<std::vector<int64_t>> per_dimension(SymIntArrayRef values, std::size_t dimensions) {
  std::vector<int64_t> result;
  for (const auto& value : values) {
    const auto known = value.maybe_as_int();
    if (!known) return std::nullopt;
    result.push_back(*known);
  }
  if (result.size() == 1) result.resize(dimensions, result.front());
  return result;
}

/// The result of the layer that has this weight, if there is one and it accepts the call.
OptionalTensor by_layer(
    const Tensor& input, const Tensor& weight, const OptionalTensor& given_bias, SymIntArrayRef stride, SymIntArrayRef padding,
    SymIntArrayRef dilation, const SymInt& groups) {
  const auto routed = find_layer(weight, /*transposed=*/false, Operation::Convolution);
  if (!routed) return std::nullopt;
  const auto& [layers, part] = routed->match;
  const auto& live = layers->weight();
  const auto spatial = static_cast<std::size_t>(live.dim() - 2);
  const auto strides = per_dimension(stride, spatial), paddings = per_dimension(padding, spatial),
             dilations = per_dimension(dilation, spatial);
  const auto known_groups = groups.maybe_as_int();
  if (!strides || !paddings || !dilations || !known_groups) return std::nullopt;
  const ConvolutionGeometry geometry{*strides, *paddings, *dilations, *known_groups};
  const auto bias = given_bias.value_or(Tensor());
  const bool single = input.dim() == live.dim() - 1;  // one sample, without a dimension of samples
  const auto x = single ? input.unsqueeze(0) : input;
  if (!ConvolutionLayer::accepts(x, live, bias, geometry)) return std::nullopt;
  auto& layer = static_cast<ConvolutionLayer&>(*layers->quantized());
  const auto y = layer.call(x, live, part, bias, geometry);
  return single ? y.squeeze(0) : y;
}

/// conv1d, conv2d, conv3d.
template <typename Op>
Tensor convolve(
    c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight, const OptionalTensor& bias, SymIntArrayRef stride,
    SymIntArrayRef padding, SymIntArrayRef dilation, SymInt groups) {
  if (auto y = by_layer(input, weight, bias, stride, padding, dilation, groups)) return *y;
  const c10::impl::ExcludeDispatchKeyGuard looked_up(kRoutingKey);
  return Op::redispatch(keys & kBelowRouting, input, weight, bias, stride, padding, dilation, std::move(groups));
}

/// The same with padding "valid" or "same".
template <typename Op>
Tensor convolve_padded(
    c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight, const OptionalTensor& bias, SymIntArrayRef stride,
    c10::string_view padding, SymIntArrayRef dilation, SymInt groups) {
  const auto plain = [&] {
    const c10::impl::ExcludeDispatchKeyGuard looked_up(kRoutingKey);
    return Op::redispatch(keys & kBelowRouting, input, weight, bias, stride, padding, dilation, groups);
  };
  const auto spatial = static_cast<std::size_t>(std::max<int64_t>(weight.dim() - 2, 0));
  const auto dilations = per_dimension(dilation, spatial);
  if (!dilations || dilations->size() != spatial || (padding != "valid" && padding != "same")) return plain();
  std::vector<SymInt> both(spatial, 0);
  std::vector<int64_t> more(2 * spatial, 0);  // on the far side alone, the last dimension first
  if (padding == "same") {
    if (std::ranges::any_of(stride, [](const SymInt& s) { return s != 1; })) return plain();  // LibTorch's error
    for (std::size_t i = 0; i < spatial; ++i) {
      const auto total = (*dilations)[i] * (weight.size(static_cast<int64_t>(i) + 2) - 1);
      both[i] = total / 2;
      more[2 * (spatial - 1 - i) + 1] = total % 2;
    }
  }
  const bool uneven = std::ranges::any_of(more, [](int64_t value) { return value > 0; });
  if (uneven && !find_layer(weight, /*transposed=*/false, Operation::Convolution)) return plain();
  const auto x = uneven ? at::constant_pad_nd(input, more) : input;
  auto y = by_layer(x, weight, bias, stride, both, dilation, groups);
  return y ? *y : plain();
}

Tensor convolution(
    c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight, const OptionalTensor& bias, SymIntArrayRef stride,
    SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding, SymInt groups) {
  if (!transposed) {
    // Autocast may leave this operation alone, on the CPU for one.
    static const auto operation = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
    std::optional<c10::impl::ExcludeDispatchKeyGuard> no_autocast;
    const auto device = input.device().type();
    if (!at::autocast::is_autocast_available(device) ||
        !operation.hasKernelForDispatchKey(at::autocast::get_autocast_dispatch_key_from_device_type(device))) {
      no_autocast.emplace(c10::autocast_dispatch_keyset);
    }
    if (auto y = by_layer(input, weight, bias, stride, padding, dilation, groups)) return *y;
  }
  return at::_ops::convolution::redispatch(
      keys & kBelowRouting, input, weight, bias, stride, padding, dilation, transposed, output_padding, std::move(groups));
}

}  // namespace

bool& wrote_windows() {
  static thread_local bool wrote = false;
  return wrote;
}

void install_convolutions(torch::Library& aten) {
  aten.impl("conv1d", TORCH_FN(convolve<at::_ops::conv1d>));
  aten.impl("conv2d", TORCH_FN(convolve<at::_ops::conv2d>));
  aten.impl("conv3d", TORCH_FN(convolve<at::_ops::conv3d>));
  aten.impl("conv1d.padding", TORCH_FN(convolve_padded<at::_ops::conv1d_padding>));
  aten.impl("conv2d.padding", TORCH_FN(convolve_padded<at::_ops::conv2d_padding>));
  aten.impl("conv3d.padding", TORCH_FN(convolve_padded<at::_ops::conv3d_padding>));
  aten.impl("convolution", TORCH_FN(convolution));
}

}  // namespace te_int8::inline v0::detail
