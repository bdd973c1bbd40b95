// A model's parameters: how many there are, and which of them decay.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

namespace examples {

inline int64_t parameter_count(const torch::nn::Module& model) {
  int64_t count = 0;
  for (const torch::Tensor& parameter : model.parameters()) {
    count += parameter.numel();
  }
  return count;
}

// For AdamW. Weights decay; biases and norms, which have one dimension, do not.
inline std::vector<torch::optim::OptimizerParamGroup> parameter_groups(
    const torch::nn::Module& model, double weight_decay, std::tuple<double, double> betas) {
  std::vector<torch::Tensor> weights;
  std::vector<torch::Tensor> vectors;
  for (const torch::Tensor& parameter : model.parameters()) {
    (parameter.dim() > 1 ? weights : vectors).push_back(parameter);
  }
  const auto group = [&](std::vector<torch::Tensor> parameters, double decay) {
    auto options = std::make_unique<torch::optim::AdamWOptions>();
    options->betas(betas).weight_decay(decay);
    return torch::optim::OptimizerParamGroup(std::move(parameters), std::move(options));
  };
  return {group(std::move(weights), weight_decay), group(std::move(vectors), 0.0)};
}

}  // namespace examples
