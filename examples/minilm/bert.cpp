#include "bert.h"

#include <limits>
#include <optional>
#include <stdexcept>

namespace minilm {

namespace nn = torch::nn;

namespace {

nn::LayerNorm layer_norm(const BertConfig& config) {
  return nn::LayerNorm(nn::LayerNormOptions({config.width}).eps(config.norm_eps));
}

// The checkpoint also holds a classifier's pooler and the numbers 0, 1, 2, ... as a tensor.
bool is_unused(const std::string& name) {
  return name.starts_with("pooler.") || name == "embeddings.position_ids";
}

}  // namespace

EmbeddingsImpl::EmbeddingsImpl(const BertConfig& config)
    : words_(register_module("word_embeddings", nn::Embedding(config.vocabulary, config.width))),
      positions_(
          register_module("position_embeddings", nn::Embedding(config.positions, config.width))),
      token_types_(register_module(
          "token_type_embeddings", nn::Embedding(config.token_types, config.width))),
      norm_(register_module("LayerNorm", layer_norm(config))) {}

torch::Tensor EmbeddingsImpl::forward(const torch::Tensor& ids) {
  // Every text here is a first text, of type 0. Both summands are small: one row a position.
  const auto places = positions_->weight.slice(0, 0, ids.size(1)) + token_types_->weight[0];
  return norm_(words_(ids).add_(places)).flatten(0, 1);
}

SelfAttentionImpl::SelfAttentionImpl(const BertConfig& config)
    : heads_(config.heads),
      query_(register_module("query", nn::Linear(config.width, config.width))),
      key_(register_module("key", nn::Linear(config.width, config.width))),
      value_(register_module("value", nn::Linear(config.width, config.width))) {}

// A view: [batch * tokens, width] -> [batch, heads, tokens, width / heads]
torch::Tensor SelfAttentionImpl::heads(const torch::Tensor& rows, Shape shape) const {
  return rows.view({shape.batch, shape.tokens, heads_, -1}).transpose(1, 2);
}

torch::Tensor SelfAttentionImpl::forward(
    const torch::Tensor& rows, Shape shape, const torch::Tensor& bias) {
  const auto mixed = torch::scaled_dot_product_attention(
      heads(query_(rows), shape), heads(key_(rows), shape), heads(value_(rows), shape),
      bias.defined() ? std::optional<torch::Tensor>(bias) : std::nullopt);
  return mixed.transpose(1, 2).reshape({shape.batch * shape.tokens, -1});
}

OutputImpl::OutputImpl(const BertConfig& config, int64_t inputs)
    : dense_(register_module("dense", nn::Linear(inputs, config.width))),
      norm_(register_module("LayerNorm", layer_norm(config))) {}

torch::Tensor OutputImpl::forward(const torch::Tensor& rows, const torch::Tensor& residual) {
  return norm_(dense_(rows).add_(residual));
}

AttentionImpl::AttentionImpl(const BertConfig& config)
    : self_(register_module("self", SelfAttention(config))),
      output_(register_module("output", Output(config, config.width))) {}

torch::Tensor AttentionImpl::forward(
    const torch::Tensor& rows, Shape shape, const torch::Tensor& bias) {
  return output_(self_(rows, shape, bias), rows);
}

IntermediateImpl::IntermediateImpl(const BertConfig& config)
    : dense_(register_module("dense", nn::Linear(config.width, config.inner))) {}

torch::Tensor IntermediateImpl::forward(const torch::Tensor& rows) {
  torch::Tensor inner = dense_(rows);
  return torch::gelu_(
      inner);  // the largest tensor of a layer: a second one costs fresh pages each time
}

LayerImpl::LayerImpl(const BertConfig& config)
    : attention_(register_module("attention", Attention(config))),
      intermediate_(register_module("intermediate", Intermediate(config))),
      output_(register_module("output", Output(config, config.inner))) {}

torch::Tensor LayerImpl::forward(
    const torch::Tensor& rows, Shape shape, const torch::Tensor& bias) {
  const auto attended = attention_(rows, shape, bias);
  return output_(intermediate_(attended), attended);
}

BertImpl::BertImpl(const BertConfig& config)
    : positions_(config.positions),
      embeddings_(register_module("embeddings", Embeddings(config))),
      layers_(nn::ModuleList()) {
  TORCH_CHECK(
      config.width % config.heads == 0, "Bert: expected a width that is a multiple of ",
      config.heads, " heads, got ", config.width);
  nn::ModuleDict encoder;  // only a name: the layers are "encoder.layer.0" and so on
  register_module("encoder", encoder);
  encoder->register_module("layer", layers_);
  for (int64_t i = 0; i < config.layers; ++i) {
    layers_->push_back(Layer(config));
  }
}

torch::Tensor BertImpl::forward(const torch::Tensor& ids, const torch::Tensor& mask) {
  TORCH_CHECK(
      ids.dim() == 2 && ids.size(1) <= positions_, "Bert: expected ids of at most ", positions_,
      " tokens a text, [batch, tokens], got ", ids.sizes());
  const Shape shape = {ids.size(0), ids.size(1)};
  torch::Tensor rows = embeddings_(ids);
  torch::Tensor bias;
  if (mask.defined()) {
    bias = torch::zeros({shape.batch, 1, 1, shape.tokens}, rows.options());
    bias.masked_fill_(
        mask.logical_not().view(bias.sizes()), -std::numeric_limits<double>::infinity());
  }
  for (const auto& layer : *layers_) {
    rows = layer->as<Layer>()->forward(rows, shape, bias);
  }
  return rows.view({shape.batch, shape.tokens, -1});
}

torch::Tensor BertImpl::embed(const torch::Tensor& ids, const torch::Tensor& mask) {
  const torch::Tensor tokens = forward(ids, mask);
  // The number of tokens cancels when the length becomes 1, so a sum is as good as the mean.
  const torch::Tensor sum =
      mask.defined() ? torch::bmm(mask.unsqueeze(1).to(tokens.dtype()), tokens).squeeze(1)
                     : tokens.sum(1);
  return nn::functional::normalize(sum);
}

void BertImpl::load(const NamedTensors& tensors, const std::string& file) {
  const torch::NoGradGuard no_grad;
  auto parameters = named_parameters();
  for (const auto& [name, tensor] : tensors) {
    if (!parameters.contains(name) && !is_unused(name)) {
      throw std::runtime_error(file + ": expected only BERT's tensors, got '" + name + "' as well");
    }
  }
  for (auto& item : parameters) {
    const auto found = tensors.find(item.key());
    if (found == tensors.end()) {
      throw std::runtime_error(file + ": expected a tensor '" + item.key() + "', got none");
    }
    torch::Tensor& parameter = item.value();
    const torch::Tensor& tensor = found->second;
    if (tensor.sizes() != parameter.sizes() || !tensor.is_floating_point()) {
      throw std::runtime_error(
          file + ": tensor '" + item.key() + "': expected floating point of shape " +
          c10::str(parameter.sizes()) + ", got " + c10::str(tensor.dtype(), " ", tensor.sizes()));
    }
    parameter.copy_(tensor);
    parameter.requires_grad_(false);
  }
}

}  // namespace minilm
