// From texts to embeddings: tokenizer and model together.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bert.h"
#include "wordpiece.h"

namespace minilm {

class Embedder {
 public:
  // The folder holds model.safetensors and vocab.txt.
  Embedder(const std::string& folder, torch::Device device);

  // float [texts, width], on the CPU. Batches are of texts of similar length, so that little is padded.
  torch::Tensor embed(const std::vector<std::string>& texts, int64_t batch = 32);

  Bert& model() { return model_; }
  const WordPiece& tokenizer() const { return tokenizer_; }
  torch::Device device() const { return device_; }

 private:
  WordPiece tokenizer_;
  Bert model_;
  torch::Device device_;
};

// The lines of a file that are not blank.
std::vector<std::string> read_lines(const std::string& path);

}  // namespace minilm
