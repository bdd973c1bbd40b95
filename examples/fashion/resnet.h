// A small residual network: a convolution, three stages of basic blocks that halve the image and
// double the channels, the mean over the image, a Linear.
#pragma once

#include <torch/torch.h>

#include <cstdint>

#include "classifier.h"

namespace fashion {

struct ResNetConfig {
  int64_t width = 16;  // channels of the first stage
  int64_t blocks = 1;  // of each stage
};

// relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))). The shortcut is x itself where the shapes
// allow it.
class BasicBlockImpl : public torch::nn::Module {
 public:
  BasicBlockImpl(int64_t in, int64_t out, int64_t stride);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  torch::nn::Conv2d conv1_;
  torch::nn::BatchNorm2d norm1_;
  torch::nn::Conv2d conv2_;
  torch::nn::BatchNorm2d norm2_;
  torch::nn::Sequential shortcut_;
};
TORCH_MODULE(BasicBlock);

class ResNet : public Classifier {
 public:
  explicit ResNet(const ResNetConfig& config);
  torch::Tensor forward(const torch::Tensor& images) override;

 private:
  torch::nn::Conv2d stem_;
  torch::nn::BatchNorm2d stem_norm_;
  torch::nn::Sequential blocks_;
  torch::nn::Linear head_;
};

}  // namespace fashion
