// A module type of one's own: te_int8 is told by which weights it multiplies, and quantizes them wherever they are used.
//
// Here a Linear with a low-rank update (Hu et al. 2021, arXiv:2106.09685): the pretrained weight is frozen, and two thin
// matrices beside it are trained.
#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <vector>

#include "common/device.h"

namespace nn = torch::nn;

// ---- The module, and what te_int8 has to know of it -----------------------------------------------

struct LoraLinearImpl : nn::Module {
  LoraLinearImpl(const nn::Linear& pretrained, int64_t rank) {
    weight = register_parameter("weight", pretrained->weight.detach(), /*requires_grad=*/false);
    bias = register_parameter("bias", pretrained->bias.detach(), /*requires_grad=*/false);
    down = register_parameter("down", torch::randn({rank, weight.size(1)}) / std::sqrt(static_cast<double>(weight.size(1))));
    up = register_parameter("up", torch::zeros({weight.size(0), rank}));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    namespace F = nn::functional;
    return F::linear(x, weight, bias) + F::linear(F::linear(x, down), up);
  }
  torch::Tensor weight, bias, down, up;
};
TORCH_MODULE(LoraLinear);

void register_lora() {
  te_int8::register_module<LoraLinearImpl>([](LoraLinearImpl& m) {
    return te_int8::Weights{{"weight", m.weight, m.bias}, {"down", m.down}, {"up", m.up}};
  });
}

// ---- A program that uses it ------------------------------------------------------------------------

void fine_tune() {
  const auto choice = examples::choose_device("auto");
  std::cout << "A module type of one's own, on " << choice.device << " (" << choice.reason << ")\n\n";
  torch::manual_seed(0);
  register_lora();

  nn::Sequential model(LoraLinear(nn::Linear(256, 512), 8), nn::GELU(), LoraLinear(nn::Linear(512, 256), 8));
  model->to(choice.device);
  std::vector<torch::Tensor> trained;
  for (const auto& parameter : model->parameters()) {
    if (parameter.requires_grad()) trained.push_back(parameter);
  }
  torch::optim::AdamW optimizer(trained, torch::optim::AdamWOptions(3e-3));
  const auto x = torch::randn({1024, 256}, choice.device);
  const auto target = 0.5 * x.roll(1, 1);  // what the update has to learn
  const auto loss_of = [&] { return nn::functional::mse_loss(model->forward(x), target); };

  te_int8::AutocastGuard guard(model, te_int8::Mode::QAT);
  const double before = loss_of().item<double>();
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    loss_of().backward();
    optimizer.step();
  }
  const double after = loss_of().item<double>();
  std::cout << "Loss before and after 100 steps in INT8: " << before << ", " << after << "\n\n" << guard.report();
  TORCH_CHECK(after < before, "own_module: the loss did not fall");
}

int main() {
  try {
    fine_tune();
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    std::cerr << "own_module: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
