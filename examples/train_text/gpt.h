// A GPT: a decoder-only transformer that predicts the next byte. Plain LibTorch; nothing in here
// knows about INT8.
#pragma once

#include <torch/torch.h>

#include <cstdint>

namespace train_text {

inline constexpr int64_t kVocabulary = 256;  // the tokens are bytes

struct GptConfig {
  int64_t layers = 4;
  int64_t width = 128;
  int64_t heads = 4;
  int64_t context = 128;  // the longest input, in tokens
  double dropout = 0.0;
  bool tie_head = false;  // the head's weight is the token embedding as well
};

// x + attention(norm(x)), then x + mlp(norm(x)).
class BlockImpl : public torch::nn::Module {
 public:
  explicit BlockImpl(const GptConfig& config);
  torch::Tensor forward(torch::Tensor x);

 private:
  torch::Tensor attention(const torch::Tensor& x);

  int64_t heads_;
  double dropout_;
  torch::nn::LayerNorm attention_norm_;
  torch::nn::Linear qkv_;
  torch::nn::Linear attention_out_;
  torch::nn::LayerNorm mlp_norm_;
  torch::nn::Linear fc1_;
  torch::nn::Linear fc2_;
  torch::nn::Dropout residual_dropout_;
};
TORCH_MODULE(Block);

class GptImpl : public torch::nn::Module {
 public:
  explicit GptImpl(const GptConfig& config);

  // tokens: int64 [batch, time] -> logits [batch, time, kVocabulary]
  torch::Tensor forward(const torch::Tensor& tokens);

  // Mean cross-entropy in nats per byte.
  torch::Tensor loss(const torch::Tensor& tokens, const torch::Tensor& targets);

  const GptConfig& config() const { return config_; }

 private:
  void initialize();

  GptConfig config_;
  torch::nn::Embedding token_embedding_ = nullptr;  // stays empty when the head is tied
  torch::nn::Embedding position_embedding_;
  torch::nn::Dropout dropout_;
  torch::nn::ModuleList blocks_;
  torch::nn::LayerNorm final_norm_;
  torch::nn::Linear head_;
};
TORCH_MODULE(Gpt);

}  // namespace train_text
