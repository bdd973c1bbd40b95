// The encoder of BERT, as in all-MiniLM-L6-v2. Plain LibTorch; nothing in here knows about INT8. The
// modules are named so that their parameters have the names of the published checkpoint's tensors.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>

#include "safetensors.h"

namespace minilm {

struct BertConfig {
  int64_t vocabulary = 30522;
  int64_t positions = 512;
  int64_t token_types = 2;
  int64_t layers = 6;
  int64_t width = 384;
  int64_t heads = 12;
  int64_t inner = 1536;  // of the feed-forward part
  double norm_eps = 1e-12;
};

// The rows of a batch, one a token; everything but attention works on rows.
struct Shape {
  int64_t batch;
  int64_t tokens;
};

class EmbeddingsImpl : public torch::nn::Module {
 public:
  explicit EmbeddingsImpl(const BertConfig& config);
  torch::Tensor forward(const torch::Tensor& ids);

 private:
  torch::nn::Embedding words_;
  torch::nn::Embedding positions_;
  torch::nn::Embedding token_types_;
  torch::nn::LayerNorm norm_;
};
TORCH_MODULE(Embeddings);

class SelfAttentionImpl : public torch::nn::Module {
 public:
  explicit SelfAttentionImpl(const BertConfig& config);
  // bias: what is added to the scores, [batch, 1, 1, tokens], or undefined.
  torch::Tensor forward(const torch::Tensor& rows, Shape shape, const torch::Tensor& bias);

 private:
  torch::Tensor heads(const torch::Tensor& rows, Shape shape) const;

  int64_t heads_;
  torch::nn::Linear query_;
  torch::nn::Linear key_;
  torch::nn::Linear value_;
};
TORCH_MODULE(SelfAttention);

// The end of both halves of a layer: norm(dense(rows) + residual).
class OutputImpl : public torch::nn::Module {
 public:
  OutputImpl(const BertConfig& config, int64_t inputs);
  torch::Tensor forward(const torch::Tensor& rows, const torch::Tensor& residual);

 private:
  torch::nn::Linear dense_;
  torch::nn::LayerNorm norm_;
};
TORCH_MODULE(Output);

class AttentionImpl : public torch::nn::Module {
 public:
  explicit AttentionImpl(const BertConfig& config);
  torch::Tensor forward(const torch::Tensor& rows, Shape shape, const torch::Tensor& bias);

 private:
  SelfAttention self_;
  Output output_;
};
TORCH_MODULE(Attention);

class IntermediateImpl : public torch::nn::Module {
 public:
  explicit IntermediateImpl(const BertConfig& config);
  torch::Tensor forward(const torch::Tensor& rows);

 private:
  torch::nn::Linear dense_;
};
TORCH_MODULE(Intermediate);

class LayerImpl : public torch::nn::Module {
 public:
  explicit LayerImpl(const BertConfig& config);
  torch::Tensor forward(const torch::Tensor& rows, Shape shape, const torch::Tensor& bias);

 private:
  Attention attention_;
  Intermediate intermediate_;
  Output output_;
};
TORCH_MODULE(Layer);

class BertImpl : public torch::nn::Module {
 public:
  explicit BertImpl(const BertConfig& config = {});

  // ids: int64 [batch, tokens]; mask: bool of that shape, false at padding, or undefined where there is
  // none. Gives a vector a token: [batch, tokens, width].
  torch::Tensor forward(const torch::Tensor& ids, const torch::Tensor& mask = {});

  // The mean over a text's tokens, of length 1: [batch, width].
  torch::Tensor embed(const torch::Tensor& ids, const torch::Tensor& mask = {});

  // Takes the parameters from a checkpoint and freezes them. Every parameter has to be there in its
  // shape, and nothing else but what this encoder has no use for: the pooler and the positions' numbers.
  void load(const NamedTensors& tensors, const std::string& file);

 private:
  int64_t positions_;
  Embeddings embeddings_;
  torch::nn::ModuleList layers_;
};
TORCH_MODULE(Bert);

}  // namespace minilm
