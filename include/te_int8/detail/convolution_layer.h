// The computation of one quantized convolution of a scope: how a call finds its codes and reaches the autograd function.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <te_int8/convolution_function.h>
#include <te_int8/detail/batch_norm.h>
#include <te_int8/detail/quantized_layer.h>

namespace te_int8::inline v0::detail {

/// Conv1d, Conv2d and Conv3d. Granularity::per_row() is a scale per sample of x and one per output channel of the weight.
class ConvolutionLayer : public QuantizedLayer {
 public:
  using QuantizedLayer::QuantizedLayer;

  /// Computes a batch norm too, from now on. In Mode::Inference.
  void fold(std::shared_ptr<BatchNormFold> fold) { fold_ = std::move(fold); }

  std::string limits() const override {
    std::vector<std::string> limits;
    if (config().grad_input == Precision::Int8 || config().grad_weight == Precision::Int8) {
      limits.emplace_back("gradients of convolutions are in full precision");
    }
    if (left_to_reference_) {
      limits.emplace_back("windows of more than 131,071 values are computed by the reference, slower than in full precision");
    }
    if (writes_windows_) limits.emplace_back(
          "its windows are written to memory, as this build has no kernel that reads them in place (docs/design.md, Convolutions)");
    if (fold_ && fold_->count().results > 0) limits.push_back(fold_->remark());
    if (auto common = QuantizedLayer::limits(); !common.empty()) limits.push_back(std::move(common));
    return c10::Join("; ", limits);
  }

  /// Whether x [N,C,*] can meet this weight [O,C/groups,*]; where not, LibTorch's own error is the better one.
  static bool accepts(
      const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ConvolutionGeometry& geometry) {
    const auto spatial = geometry.stride.size();
    const auto at_least = [&](const std::vector<int64_t>& values, int64_t least) {
      return values.size() == spatial && std::ranges::all_of(values, [&](int64_t value) { return value >= least; });
    };
    if (x.is_nested() || x.layout() != at::kStrided || x.dim() != weight.dim() ||
        static_cast<int64_t>(spatial) != x.dim() - 2 || !at_least(geometry.stride, 1) || !at_least(geometry.padding, 0) ||
        !at_least(geometry.dilation, 1) || geometry.groups < 1 || x.size(1) != weight.size(1) * geometry.groups ||
        weight.size(0) % geometry.groups != 0 || weight.numel() == 0 || x.device() != weight.device() ||
        !dtypes_meet(x, weight)) {
      return false;
    }
    for (std::size_t i = 0; i < spatial; ++i) {
      const auto dimension = static_cast<int64_t>(i) + 2;
      if (x.size(dimension) == 0 || geometry.positions(i, x.size(dimension), weight.size(dimension)) == 0) return false;
    }
    return !bias.defined() || (bias.dim() == 1 && bias.size(0) == weight.size(0) && bias.device() == x.device() &&
                               dtypes_meet(x, bias));
  }

  /// x [N,C,*] convolved with the live weight `whole`, plus a bias [O] or an undefined one.
  at::Tensor call(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part, const at::Tensor& bias,
      const ConvolutionGeometry& geometry) {
    check_mode(x, part.rows, bias);
    const BackendScope backend(backend_on(x.device()));
    if (may_leave_int8() && !fold_ && is_faster_in_full_precision(x, whole, part, bias, geometry)) {
      return count_full_precision(full_precision(x, part.rows, bias, geometry));
    }
    ConvolutionCall call{
        .geometry = geometry, .out_dtype = output_dtype(x), .x = nullptr, .weight = nullptr, .weight_scales = {},
        .activations = activations()};
    auto added = bias;
    bool folded = false;
    const bool trained = at::GradMode::is_enabled() && part.rows.requires_grad();
    {
      const at::NoGradGuard no_grad;
      const PlainTensorOps plain;
      auto found = WeightCodeCache::instance().get(whole, sample_form(config().weight_granularity), part.holders, trained);
      call.weight = std::move(found.operand);
      call.gradients = std::move(found.gradients);
      call.x = x_operand(x, sample_form(config().x_granularity));
      call.weight_scales = call.weight->scale_list();
      folded = fold_ != nullptr && fold_->norm().is_fixed();
      if (folded) std::tie(call.weight_scales, added) = fold_->norm().fold(call.weight_scales, bias);
    }
    if (!can_pack_windows(whole.sizes())) left_to_reference_ = true;
    wrote_windows() = false;
    auto y = call_convolution(x, part.rows, added, std::move(call));
    if (wrote_windows()) writes_windows_ = true;
    if (folded) fold_->expect(y);
    Way::of_thread().passes(whole.unsafeGetTensorImpl());
    if (bias.defined()) ++counter()->fused_biases;
    ++counter()->calls;
    return y;
  }

 private:
  /// By the operations that autocast knows.
  static at::Tensor full_precision(
      const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ConvolutionGeometry& geometry) {
    const c10::impl::ExcludeDispatchKeyGuard no_routing(kRoutingKey);
    using Convolve = at::Tensor (*)(
        const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
        int64_t);
    constexpr std::array<Convolve, 3> kByDimensions{&at::conv1d, &at::conv2d, &at::conv3d};
    return kByDimensions.at(geometry.stride.size() - 1)(
        x, weight, as_optional(bias), geometry.stride, geometry.padding, geometry.dilation, geometry.groups);
  }

  bool is_faster_in_full_precision(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part, const at::Tensor& bias,
      const ConvolutionGeometry& geometry) const {
    const auto& weight = part.rows;
    for (const auto* operand : {&x, &weight, &bias}) forbid_forward_mode(*operand);
    if (x.numel() == 0) return false;
    const at::NoGradGuard no_grad;
    const auto dtype = output_dtype(x);
    const auto in_int8 = [&] {
      const PlainTensorOps plain;
      const auto codes =
          WeightCodeCache::instance().get(whole, sample_form(config().weight_granularity), part.holders, /*trained=*/false).operand;
      const ConvolutionCall call{
          .geometry = geometry, .out_dtype = dtype, .x = Operand::make(x, sample_form(config().x_granularity)), .weight = codes,
          .weight_scales = codes->scale_list()};
      convolve_codes(x, weight, bias, call);
    };
    std::vector<int64_t> sizes;
    const auto add = [&](at::IntArrayRef values) { sizes.insert(sizes.end(), values.begin(), values.end()); };
    for (const at::IntArrayRef values :
         {x.sizes().slice(1), weight.sizes(), at::IntArrayRef(geometry.stride), at::IntArrayRef(geometry.padding),
          at::IntArrayRef(geometry.dilation)}) {
      add(values);
    }
    add({geometry.groups, bias.defined(), static_cast<int64_t>(x.suggest_memory_format()),
         static_cast<int64_t>(weight.suggest_memory_format())});
    return detail::is_faster_in_full_precision(
        kind_of_call(Operation::Convolution, x, whole, x.size(0), std::move(sizes)), in_int8,
        [&] { full_precision(x, weight, bias, geometry); });
  }

  std::shared_ptr<BatchNormFold> fold_;
  std::atomic<bool> left_to_reference_ = false, writes_windows_ = false;
};

}  // namespace te_int8::inline v0::detail
