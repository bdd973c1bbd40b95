// The computation of one quantized embedding of a scope.
#pragma once

#include <utility>

#include <te_int8/detail/quantized_layer.h>
#include <te_int8/embedding_function.h>

namespace te_int8::inline v0::detail {

/// A table [V,D] with codes by row, or with one scale.
class EmbeddingLayer : public QuantizedLayer {
 public:
  using QuantizedLayer::QuantizedLayer;

  /// Whether these can be indices into the table; where not, LibTorch's own error is the better one.
  static bool accepts(const at::Tensor& indices, const at::Tensor& table) {
    const auto type = indices.scalar_type();
    return !indices.is_nested() && indices.layout() == at::kStrided && (type == at::kLong || type == at::kInt) &&
           indices.device() == table.device() && at::isFloatingType(table.scalar_type());
  }

  /// Rows of the live table `whole`, [*,D] for indices [*].
  at::Tensor call(
      const at::Tensor& indices, const at::Tensor& whole, const WeightRows& part, int64_t padding_idx,
      bool scale_grad_by_freq, bool sparse) {
    check_mode(/*x=*/indices, part.rows, {});
    const BackendScope backend(backend_on(whole.device()));
    EmbeddingCall call{
        .indices = indices, .padding_idx = padding_idx, .scale_grad_by_freq = scale_grad_by_freq, .sparse = sparse, .codes = {},
        .scales = {}};
    const bool trained = at::GradMode::is_enabled() && part.rows.requires_grad();
    // Codes of a whole table are worth their time where they are kept, in inference. Else the rows that are asked for are
    // quantized alone, to the same bits.
    const bool kept = is_inference() && !whole.is_inference() && !whole.is_view() &&
                      whole.storage().use_count() <= static_cast<std::size_t>(part.holders);
    if (kept || config().weight_granularity.is_per_tensor()) {
      const at::NoGradGuard no_grad;
      const PlainTensorOps plain;
      auto found = WeightCodeCache::instance().get(whole, quantized_form(config().weight_granularity), part.holders, trained);
      call.codes = found.operand->matrix();
      call.scales = found.operand->scale_list();
      call.gradients = std::move(found.gradients);
    }
    auto y = call_embedding(part.rows, std::move(call));
    ++counter()->calls;
    return y;
  }
};

}  // namespace te_int8::inline v0::detail
