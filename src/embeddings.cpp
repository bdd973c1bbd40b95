// Note [Routing] in routing.cpp, for embeddings.
#include "routing.h"

#include <utility>

#include <torch/torch.h>

#include <te_int8/detail/embedding_layer.h>
#include <te_int8/detail/scope.h>

namespace te_int8::inline v0::detail {
namespace {

at::Tensor embedding(
    c10::DispatchKeySet keys, const at::Tensor& weight, const at::Tensor& indices, c10::SymInt padding_idx,
    bool scale_grad_by_freq, bool sparse) {
  const auto routed = find_layer(weight, /*transposed=*/false, Operation::Embedding);
  const auto known_padding = padding_idx.maybe_as_int();
  if (routed && known_padding && EmbeddingLayer::accepts(indices, routed->match.layers->weight())) {
    const auto& [layers, part] = routed->match;
    auto& layer = static_cast<EmbeddingLayer&>(*layers->quantized());
    return layer.call(indices, layers->weight(), part, *known_padding, scale_grad_by_freq, sparse);
  }
  return at::_ops::embedding::redispatch(
      keys & kBelowRouting, weight, indices, std::move(padding_idx), scale_grad_by_freq, sparse);
}

}  // namespace

void install_embeddings(torch::Library& aten) { aten.impl("embedding", TORCH_FN(embedding)); }

}  // namespace te_int8::inline v0::detail
