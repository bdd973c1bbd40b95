// A small vision transformer: patches of 4 x 4 pixels and a class token, which the head reads at the
// end.
#pragma once

#include <torch/torch.h>

#include <cstdint>

#include "classifier.h"

namespace fashion {

struct VitConfig {
  int64_t width = 64;
  int64_t layers = 3;
  int64_t heads = 4;
  double dropout = 0.0;
};

// x + attention(norm(x)), then x + mlp(norm(x)); tokens first, as LibTorch's attention wants it.
class EncoderBlockImpl : public torch::nn::Module {
 public:
  explicit EncoderBlockImpl(const VitConfig& config);
  torch::Tensor forward(torch::Tensor x);

 private:
  torch::nn::LayerNorm attention_norm_;
  torch::nn::MultiheadAttention attention_;
  torch::nn::LayerNorm mlp_norm_;
  torch::nn::Linear fc1_;
  torch::nn::Linear fc2_;
  torch::nn::Dropout dropout_;
};
TORCH_MODULE(EncoderBlock);

class VisionTransformer : public Classifier {
 public:
  explicit VisionTransformer(const VitConfig& config);
  torch::Tensor forward(const torch::Tensor& images) override;

 private:
  torch::nn::Conv2d patches_;
  torch::Tensor class_token_;  // [1, 1, width]
  torch::Tensor positions_;    // [1 + patches, 1, width]
  torch::nn::Dropout dropout_;
  torch::nn::Sequential blocks_;
  torch::nn::LayerNorm final_norm_;
  torch::nn::Linear head_;
};

}  // namespace fashion
