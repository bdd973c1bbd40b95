// The computation of one quantized linear layer of a scope: how a call finds its codes and reaches the
// autograd function. QuantizedLinearImpl and the routed kernels both end here.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <te_int8/detail/quantized_layer.h>

namespace te_int8::inline v0::detail {

class LinearLayer : public QuantizedLayer {
 public:
  using QuantizedLayer::QuantizedLayer;

  /// Whether x [*,K] can meet this weight [N,K]; where not, LibTorch's own error is the better one.
  static bool accepts(const at::Tensor& x, const at::Tensor& weight) {
    if (x.is_nested() || x.layout() != at::kStrided) return false;
    return x.dim() >= 1 && x.size(-1) == weight.size(1) && x.device() == weight.device() && dtypes_meet(x, weight);
  }

  /// y = x W^T + b for x [*,K] and `part` of the live weight `whole`.
  at::Tensor call(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part,
      const at::Tensor& bias) {
    return call(x, whole, part, bias, {});
  }

  /// y = x W^T, to which one of `biases` is probably added next: see Note [Deferred bias].
  at::Tensor call_before_bias(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part,
      std::vector<at::Tensor> biases) {
    if (!int8_output()) biases.clear();
    return call(x, whole, part, {}, std::move(biases));
  }

 private:
  at::Tensor call(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part, const at::Tensor& bias,
      std::vector<at::Tensor> deferred_biases) {
    check_mode(x, part.rows, bias);
    for (const auto& deferred : deferred_biases) check_mode(x, part.rows, deferred);
    if (config().quantizes_nothing()) {
      auto y = full_precision(x, part.rows, bias);
      ++counter()->calls;
      return y;
    }

    const BackendScope backend(backend_on(x.device()));
    if (may_leave_int8() && is_faster_in_full_precision(x, whole, part, bias, deferred_biases)) {
      return count_full_precision(full_precision(x, part.rows, bias));
    }
    LinearCall call{.config = config(), .out_dtype = output_dtype(x), .count = counter(), .activations = activations(),
                    .observer = observer_of_call(name())};
    const bool trained = at::GradMode::is_enabled() && part.rows.requires_grad();
    {
      const at::NoGradGuard no_grad;
      const PlainTensorOps plain;
      // With a full-precision output only an INT8 backward needs codes.
      if (int8_output() || (config().grad_input == Precision::Int8 && x.requires_grad())) {
        weight_operand(call, whole, part, trained);
      }
      call.codes_inside = int8_output() && !trained && deferred_biases.empty() && !call.observer &&
                          makes_codes_inside(x, *call.weight, bias, config());
      if (!call.codes_inside && (int8_output() || (config().grad_weight == Precision::Int8 && part.rows.requires_grad()))) {
        call.x = x_operand(x, operand_form(config().output, config().grad_weight, config().x_granularity));
      }
    }
    call.deferred_biases = std::move(deferred_biases);
    auto y = call_linear(x, part.rows, bias, std::move(call));
    Way::of_thread().passes(whole.unsafeGetTensorImpl());
    ++counter()->calls;
    return y;
  }

  static at::Tensor full_precision(
      const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    const c10::impl::ExcludeDispatchKeyGuard no_routing(kRoutingKey);
    return at::linear(x, weight, as_optional(bias));
  }

  bool is_faster_in_full_precision(
      const at::Tensor& x, const at::Tensor& whole, const WeightRows& part, const at::Tensor& bias,
      const std::vector<at::Tensor>& deferred_biases) {
    const auto& added = deferred_biases.empty() ? bias : deferred_biases.front();
    for (const auto* operand : {&x, &part.rows, &added}) forbid_forward_mode(*operand);
    if (x.numel() == 0) return false;
    const at::NoGradGuard no_grad;
    const auto dtype = output_dtype(x);
    const auto in_int8 = [&] {
      const PlainTensorOps plain;
      LinearCall call{.config = config(), .out_dtype = dtype};
      weight_operand(call, whole, part, /*trained=*/false);
      linear_forward(x, part.rows, added, call, /*keeps_x=*/false);
    };
    const auto in_full_precision = [&] {
      auto y = full_precision(x, part.rows, bias);
      const c10::impl::ExcludeDispatchKeyGuard no_routing(kRoutingKey);
      if (!deferred_biases.empty()) y.add_(added);  // as LibTorch does to what is not 2-D
    };
    const int64_t rows = part.rows.size(0), depth = part.rows.size(1);
    return detail::is_faster_in_full_precision(
        kind_of_call(
            Operation::Linear, x, whole, x.numel() / depth,
            {rows, depth, added.defined(), !deferred_biases.empty(), x.is_contiguous()}),
        in_int8, in_full_precision);
  }

  void weight_operand(LinearCall& call, const at::Tensor& whole, const WeightRows& part, bool trained) {
    const auto form = operand_form(config().output, config().grad_input, config().weight_granularity);
    const auto count = part.rows.size(0);
    const bool is_whole = count == whole.size(0);
    if (!is_whole && form == OperandForm::ColumnCodes) {
      call.weight = Operand::make(part.rows, form);
      return;
    }
    auto found = WeightCodeCache::instance().get(whole, form, part.holders, trained);
    call.gradients = std::move(found.gradients);
    if (is_whole) {
      call.weight = std::move(found.operand);
      return;
    }
    call.weight = Operand::rows_of(found.operand, part.first, count);
  }
};

}  // namespace te_int8::inline v0::detail
