#include "gpt.h"

#include <cmath>
#include <string>

namespace train_text {

namespace nn = torch::nn;
namespace F = torch::nn::functional;

namespace {
nn::LayerNorm layer_norm(int64_t width) { return nn::LayerNorm(nn::LayerNormOptions({width})); }
}  // namespace

BlockImpl::BlockImpl(const GptConfig& config)
    : heads_(config.heads),
      dropout_(config.dropout),
      attention_norm_(register_module("attention_norm", layer_norm(config.width))),
      qkv_(register_module("qkv", nn::Linear(config.width, 3 * config.width))),
      attention_out_(register_module("attention_out", nn::Linear(config.width, config.width))),
      mlp_norm_(register_module("mlp_norm", layer_norm(config.width))),
      fc1_(register_module("fc1", nn::Linear(config.width, 4 * config.width))),
      fc2_(register_module("fc2", nn::Linear(4 * config.width, config.width))),
      residual_dropout_(register_module("residual_dropout", nn::Dropout(config.dropout))) {}

torch::Tensor BlockImpl::attention(const torch::Tensor& x) {
  const int64_t batch = x.size(0);
  const int64_t time = x.size(1);
  const int64_t width = x.size(2);
  // [batch, time, 3 * width] -> [3, batch, heads, time, width / heads]
  const auto qkv = qkv_(x).view({batch, time, 3, heads_, width / heads_}).permute({2, 0, 3, 1, 4});
  const auto mixed = torch::scaled_dot_product_attention(
      qkv[0], qkv[1], qkv[2], /*attn_mask=*/{}, is_training() ? dropout_ : 0.0, /*is_causal=*/true);
  return attention_out_(mixed.transpose(1, 2).reshape({batch, time, width}));
}

torch::Tensor BlockImpl::forward(torch::Tensor x) {
  x = x + residual_dropout_(attention(attention_norm_(x)));
  return x + residual_dropout_(fc2_(torch::gelu(fc1_(mlp_norm_(x)))));
}

GptImpl::GptImpl(const GptConfig& config)
    : config_(config),
      position_embedding_(
          register_module("position_embedding", nn::Embedding(config.context, config.width))),
      dropout_(register_module("dropout", nn::Dropout(config.dropout))),
      blocks_(register_module("blocks", nn::ModuleList())),
      final_norm_(register_module("final_norm", layer_norm(config.width))),
      head_(register_module(
          "head", nn::Linear(nn::LinearOptions(config.width, kVocabulary).bias(false)))) {
  if (!config.tie_head) {
    token_embedding_ = register_module("token_embedding", nn::Embedding(kVocabulary, config.width));
  }
  for (int64_t i = 0; i < config.layers; ++i) {
    blocks_->push_back(Block(config));
  }
  initialize();
}

// GPT-2's initialization: small normal weights, smaller still where a block adds to the residual
// stream, so that its variance does not grow with depth.
void GptImpl::initialize() {
  const torch::NoGradGuard no_grad;
  const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(config_.layers));
  for (const auto& item : named_parameters()) {
    const std::string& name = item.key();
    const auto ends_with = [&](const char* ending) { return name.ends_with(ending); };
    if (ends_with("bias")) {
      item.value().zero_();
    } else if (ends_with("attention_out.weight") || ends_with("fc2.weight")) {
      item.value().normal_(0.0, residual);
    } else if (!ends_with("norm.weight")) {
      item.value().normal_(0.0, 0.02);
    }
  }
}

torch::Tensor GptImpl::forward(const torch::Tensor& tokens) {
  const auto positions = torch::arange(tokens.size(1), tokens.options());
  const torch::Tensor& embedding =
      token_embedding_.is_empty() ? head_->weight : token_embedding_->weight;
  torch::Tensor x = dropout_(torch::embedding(embedding, tokens) + position_embedding_(positions));
  for (const auto& block : *blocks_) {
    x = block->as<Block>()->forward(x);
  }
  return head_(final_norm_(x));
}

torch::Tensor GptImpl::loss(const torch::Tensor& tokens, const torch::Tensor& targets) {
  const torch::Tensor logits = forward(tokens).to(torch::kFloat);  // bf16 is too coarse for a loss
  return F::cross_entropy(logits.view({-1, kVocabulary}), targets.reshape({-1}));
}

}  // namespace train_text
