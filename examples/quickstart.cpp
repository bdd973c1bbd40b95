// Quick start: one training step with quantization awareness, then INT8 inference.
//
// The model is ordinary LibTorch and knows nothing about INT8. A te_int8::AutocastGuard turns its
// matmuls into INT8 while the guard lives, and gives the model back unchanged when it ends.
#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <cstdlib>
#include <exception>
#include <iostream>

#include "common/device.h"

namespace nn = torch::nn;

// Two encoder layers, then a classifier of 10 classes on token 0.
class SimpleTransformerImpl : public nn::Module {
 public:
  SimpleTransformerImpl()
      : encoder(nn::TransformerEncoderOptions(
            nn::TransformerEncoderLayerOptions(/*d_model=*/512, /*nhead=*/8).dim_feedforward(2048),
            /*num_layers=*/2)),
        head(512, 10) {
    register_module("encoder", encoder);
    register_module("head", head);
  }

  // x: batch x tokens x features. LibTorch's encoder wants tokens first, hence the transpose.
  torch::Tensor forward(const torch::Tensor& x) {
    const torch::Tensor tokens = encoder(x.transpose(0, 1));
    return head(tokens[0]);
  }

  nn::TransformerEncoder encoder;
  nn::Linear head;
};
TORCH_MODULE(SimpleTransformer);

void quickstart() {
  const examples::DeviceChoice choice = examples::choose_device("auto");
  std::cout << "te_int8 quick start on " << choice.device << " (" << choice.reason << ")\n\n";

  torch::manual_seed(0);
  SimpleTransformer model;
  model->to(choice.device);
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-5));

  const auto input = torch::randn({16, 128, 512}, choice.device);
  const auto labels = torch::randint(10, {16}, torch::dtype(torch::kLong).device(choice.device));
  std::cout << "The model: a transformer of 2 encoder layers and a classifier, in full precision.\n"
               "The input: 16 sequences of 128 tokens with 512 features each, random.\n\n";

  // 1. Quantization-aware training. Only the forward pass belongs into the scope.
  std::cout << "1. One training step whose forward pass computes in INT8\n";
  torch::Tensor loss;
  {
    te_int8::AutocastGuard guard(model, te_int8::Mode::QAT);
    loss = nn::functional::cross_entropy(model(input), labels);
  }
  const torch::Tensor head_before = model->head->weight.detach().clone();
  optimizer.zero_grad();
  loss.backward();   // the gradients pass straight through the rounding ...
  optimizer.step();  // ... and update the full-precision weights
  const double change = (model->head->weight - head_before).abs().max().item<double>();
  std::cout << "   loss: " << loss.item<double>()
            << "\n   largest change of a classifier weight: " << change
            << " (the learning rate is 1e-05)\n\n";

  // 2. INT8 inference through the same scope.
  std::cout << "2. Inference in INT8\n";
  model->eval();
  torch::NoGradGuard no_grad;
  const torch::Tensor full_precision = model(input);
  torch::Tensor output;
  {
    te_int8::AutocastGuard guard(model, te_int8::Mode::Inference);
    output = model(input);

    std::cout << "   output: " << output.size(0) << " x " << output.size(1)
              << " (16 sequences, 10 classes)\n   relative difference to full precision: "
              << ((output - full_precision).norm() / full_precision.norm()).item<double>()
              << "\n\nWhat the scope did with each layer:\n"
              << guard.report() << '\n';
  }

  const bool restored = torch::equal(model(input), full_precision);
  std::cout << "After the scope the model is as it was: its outputs are "
            << (restored ? "equal bit for bit" : "NOT EQUAL") << " to those before.\n"
            << "Next: build train_text (cmake --build build), which trains a GPT on a real book this way.\n";
  TORCH_CHECK(restored, "quickstart: the scope changed the model");
}

int main() {
  try {
    quickstart();
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    std::cerr << "quickstart: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
