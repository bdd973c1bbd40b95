// The models, by name and size. Plain LibTorch; nothing in here knows about INT8.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>

namespace fashion {

class Classifier : public torch::nn::Module {
 public:
  // float [N, 1, 28, 28] -> logits [N, 10]
  virtual torch::Tensor forward(const torch::Tensor& images) = 0;
};

// `model` is resnet or vit, `size` small (for a CPU) or large. Its weights are LibTorch's next
// random numbers.
std::shared_ptr<Classifier> make_classifier(const std::string& model, const std::string& size);

}  // namespace fashion
