#include "vit.h"

#include <tuple>

#include "data.h"

namespace fashion {

namespace nn = torch::nn;

namespace {

constexpr int64_t kPatch = 4;
constexpr int64_t kPatches = (kSide / kPatch) * (kSide / kPatch);

nn::LayerNorm norm(int64_t width) { return nn::LayerNorm(nn::LayerNormOptions({width})); }

}  // namespace

EncoderBlockImpl::EncoderBlockImpl(const VitConfig& config)
    : attention_norm_(register_module("attention_norm", norm(config.width))),
      attention_(register_module("attention", nn::MultiheadAttention(config.width, config.heads))),
      mlp_norm_(register_module("mlp_norm", norm(config.width))),
      fc1_(register_module("fc1", nn::Linear(config.width, 4 * config.width))),
      fc2_(register_module("fc2", nn::Linear(4 * config.width, config.width))),
      dropout_(register_module("dropout", nn::Dropout(config.dropout))) {}

torch::Tensor EncoderBlockImpl::forward(torch::Tensor x) {
  const torch::Tensor y = attention_norm_(x);
  const torch::Tensor mixed = std::get<0>(
      attention_(y, y, y, /*key_padding_mask=*/torch::Tensor(), /*need_weights=*/false));
  x = x + dropout_(mixed);
  return x + dropout_(fc2_(torch::gelu(fc1_(mlp_norm_(x)))));
}

VisionTransformer::VisionTransformer(const VitConfig& config)
    : patches_(register_module(
          "patches", nn::Conv2d(nn::Conv2dOptions(1, config.width, kPatch).stride(kPatch)))),
      class_token_(register_parameter("class_token", 0.02 * torch::randn({1, 1, config.width}))),
      positions_(
          register_parameter("positions", 0.02 * torch::randn({1 + kPatches, 1, config.width}))),
      dropout_(register_module("dropout", nn::Dropout(config.dropout))),
      blocks_(register_module("blocks", nn::Sequential())),
      final_norm_(register_module("final_norm", norm(config.width))),
      head_(register_module("head", nn::Linear(config.width, kClasses))) {
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    blocks_->push_back(EncoderBlock(config));
  }
}

torch::Tensor VisionTransformer::forward(const torch::Tensor& images) {
  const torch::Tensor patches = patches_(images).flatten(2).permute({2, 0, 1});
  const torch::Tensor first = class_token_.expand({1, images.size(0), -1});
  const torch::Tensor tokens = dropout_(torch::cat({first, patches}) + positions_);
  return head_(final_norm_(blocks_->forward(tokens)[0]));
}

}  // namespace fashion
