// An encoder-decoder transformer that reads the letters of words and says their phonemes, one after
// the other. Plain LibTorch; nothing in here knows about INT8.
#pragma once

#include <torch/torch.h>

#include <cstdint>

#include "word_batches.h"

namespace pronounce {

struct PronouncerConfig {
  int64_t layers = 3;  // of the encoder, and of the decoder
  int64_t width = 256;
  int64_t heads = 4;
  double dropout = 0.1;
};

// What the encoder makes of the letters, for the decoder to attend to.
struct Memory {
  torch::Tensor states;   // [letters, words, width]: LibTorch's layers want the words second
  torch::Tensor padding;  // bool [words, letters]: true where there is no letter
};

class PronouncerImpl : public torch::nn::Module {
 public:
  explicit PronouncerImpl(const PronouncerConfig& config);

  // letters: int64 [words, letters]
  Memory encode(const torch::Tensor& letters);

  // phonemes: int64 [words, time], kStart and what was said since -> states [time, words, width].
  // Each sees itself and those before it alone.
  torch::Tensor decode(const Memory& memory, const torch::Tensor& phonemes);

  // states [..., width] -> what to say next, logits [..., kSpokenCodes]
  torch::Tensor logits(const torch::Tensor& states) { return head_(states); }

  // Mean cross-entropy in nats per phoneme, end marks included.
  torch::Tensor loss(const WordBatch& batch, double label_smoothing);

 private:
  torch::Tensor embed(
      torch::nn::Embedding& symbols, torch::nn::Embedding& positions, const torch::Tensor& codes);

  torch::nn::Embedding letters_, letter_positions_;
  torch::nn::Embedding phonemes_, phoneme_positions_;
  torch::nn::Dropout dropout_;
  torch::nn::Transformer transformer_;
  torch::nn::Linear head_;
};
TORCH_MODULE(Pronouncer);

}  // namespace pronounce
