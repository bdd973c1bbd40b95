// A text as bytes: random windows of its first part to train on, fixed ones of its end to validate.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

namespace train_text {

struct Batch {
  torch::Tensor tokens;   // int64 [windows, context]
  torch::Tensor targets;  // the same windows one byte later
};

class TextData {
 public:
  // The last tenth of `text` becomes the validation part. Every window is `context` tokens long.
  TextData(const std::string& text, int64_t context, torch::Device device);

  // Windows at random places. They depend on the seed and the step alone, so two runs see the same
  // batches and a resumed run goes on with the right one, with no generator's state to keep.
  Batch train_batch(uint64_t seed, int64_t step, int64_t windows) const;

  // `count` windows that do not overlap, evenly spread over the validation part, in batches of at
  // most `windows`. The same in every call: differences between models are not differences of data.
  std::vector<Batch> validation_batches(int64_t count, int64_t windows) const;

  // How many such windows there are at most.
  int64_t validation_windows() const;

  // The validation loss, in nats per byte, of predicting each byte by its frequency in the training
  // part: what a model that learns anything has to beat.
  double unigram_loss() const;

  int64_t train_bytes() const { return train_.size(0); }
  int64_t validation_bytes() const { return validation_.size(0); }

 private:
  Batch windows_at(const torch::Tensor& bytes, const torch::Tensor& starts) const;

  int64_t context_;
  torch::Tensor train_;       // uint8, on the device
  torch::Tensor validation_;  // the same
};

// The file's bytes; a file that cannot be read, or is empty, is an error that names it.
std::string read_text(const std::string& path);

// A short number that differs when the text does.
std::string fingerprint(const std::string& text);

}  // namespace train_text
