// A quantized embedding as one autograd function: the forward gives rows of the dequantized table, the backward passes
// straight through to the table.
#pragma once

#include <utility>

#include <torch/torch.h>

#include <te_int8/linear_function.h>

namespace te_int8::inline v0::detail {

/// One call of an embedding of `indices` in a table [V,D].
struct EmbeddingCall {
  at::Tensor indices;  ///< [*], int64 or int32
  int64_t padding_idx;
  bool scale_grad_by_freq, sparse;
  at::Tensor codes, scales;  ///< of the table; undefined: the rows that are asked for are quantized by themselves
  GradientCount gradients = nullptr;
};

/// [*,D] of the table's dtype: float(code) * scale, rounded once. A row's codes are the same whoever makes them.
inline at::Tensor embed_codes(const at::Tensor& table, const EmbeddingCall& call) {
  const auto indices = call.indices.reshape(-1);
  at::Tensor codes, scales;
  if (call.codes.defined()) {
    codes = call.codes.index_select(0, indices);
    scales = call.scales.size(0) == 1 ? call.scales : call.scales.index_select(0, indices);
  } else {
    std::tie(codes, scales) = ops::quantize_rows(table.index_select(0, indices));
  }
  auto sizes = call.indices.sizes().vec();
  sizes.push_back(table.size(1));
  return at::_unsafe_view(ops::dequantize(codes, scales, table.scalar_type()), sizes);
}

class EmbeddingFunction : public torch::autograd::Function<EmbeddingFunction> {
  using AutogradContext = torch::autograd::AutogradContext;

  struct Context : torch::CustomClassHolder {
    int64_t rows, padding_idx;
    bool scale_grad_by_freq, sparse;
    GradientCount gradients;
  };

 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& table, EmbeddingCall call) {
    const PlainTensorOps plain;
    auto context = c10::make_intrusive<Context>();
    context->rows = table.size(0);
    context->padding_idx = call.padding_idx;
    context->scale_grad_by_freq = call.scale_grad_by_freq;
    context->sparse = call.sparse;
    context->gradients = call.gradients;
    ctx->save_for_backward({call.indices});
    ctx->saved_data["embedding"] = c10::IValue::make_capsule(std::move(context));
    return embed_codes(table, call);
  }

  static torch::autograd::variable_list backward(AutogradContext* ctx, torch::autograd::variable_list gradients) {
    const auto context = c10::static_intrusive_pointer_cast<Context>(ctx->saved_data.at("embedding").toCapsule());
    const auto indices = ctx->get_saved_variables()[0];
    const auto& dy = gradients[0];
    if (!dy.defined()) return {{}, {}};
    const bool second_order = at::GradMode::is_enabled();
    at::Tensor gradient;
    {
      const at::NoGradGuard no_grad;
      const PlainTensorOps plain;
      gradient = at::embedding_backward(
          dy, indices, context->rows, context->padding_idx, context->scale_grad_by_freq, context->sparse);
      if (context->gradients) ++*context->gradients;
    }
    if (second_order) forbid_second_order(gradient, dy, "embedding");
    return {gradient, {}};
  }
};

/// One call, recorded for backward where grad mode asks for it.
inline at::Tensor call_embedding(const at::Tensor& table, EmbeddingCall call) {
  forbid_forward_mode(table);
  if (at::GradMode::is_enabled() && table.requires_grad()) return EmbeddingFunction::apply(table, std::move(call));
  const PlainTensorOps plain;
  return embed_codes(table, call);
}

}  // namespace te_int8::inline v0::detail
