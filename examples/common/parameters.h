// A model's parameters: how many there are, which of them decay, and a step of all.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "schedule.h"

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

// One step along gradients whose norm is at most `clip`; then there are none.
inline void descend(
    torch::optim::Optimizer& optimizer, const torch::nn::Module& model, double clip, double rate) {
  torch::nn::utils::clip_grad_norm_(model.parameters(), clip);
  set_learning_rate(optimizer, rate);
  optimizer.step();
  optimizer.zero_grad();
}

}  // namespace examples
