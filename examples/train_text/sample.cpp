#include "sample.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <vector>

#include "../common/bf16_autocast.h"
#include "../common/interrupt.h"

namespace train_text {

std::string sample(
    Gpt& model, torch::Device device, const SampleOptions& options, te_int8::Mode mode,
    const te_int8::Recipe& recipe) {
  const torch::NoGradGuard no_grad;
  model->eval();
  // A generator of its own: the text depends on the seed, not on what ran before.
  auto random = at::detail::createCPUGenerator(options.seed);
  const auto context = static_cast<size_t>(model->config().context);
  std::string text = options.prompt;

  te_int8::AutocastGuard guard(*model, mode, recipe);
  for (int64_t i = 0; i < options.bytes && !examples::interrupted(); ++i) {
    const std::string visible = text.substr(text.size() - std::min(text.size(), context));
    const std::vector<int64_t> bytes(
        reinterpret_cast<const uint8_t*>(visible.data()),
        reinterpret_cast<const uint8_t*>(visible.data()) + visible.size());
    const torch::Tensor tokens = torch::tensor(bytes, torch::kLong).unsqueeze(0).to(device);
    const examples::Bf16Autocast autocast(device, options.bf16);
    const torch::Tensor logits = model(tokens)[0][-1].to(torch::kCPU, torch::kFloat);
    const torch::Tensor probabilities = (logits / options.temperature).softmax(0);
    const auto next = torch::multinomial(probabilities, 1, /*replacement=*/false, random);
    text += static_cast<char>(next.item<int64_t>());
  }
  return text;
}

}  // namespace train_text
