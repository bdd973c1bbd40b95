// The training loop, with its one line about quantization, and the validation loss.
#pragma once

#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../common/checkpoint.h"
#include "../common/training_loop.h"
#include "gpt.h"
#include "text_data.h"

namespace train_text {

struct TrainOptions : examples::TrainingOptions {  // a batch is of windows
  bool bf16 = false;                               // autocast around the forward pass
  int64_t eval_windows = 0;
  std::string diagnose;  // a CSV file, or empty
  int64_t diagnose_every = 100;
};

// What is known after an evaluation. Losses are in nats per byte.
struct Metrics : examples::TrainingMetrics {
  double validation_loss = 0;  // in the precision that is trained in
};

// Mean loss in nats per byte, in eval mode and without gradients. `mode` is Inference, or Off.
double evaluate(
    Gpt& model, const std::vector<Batch>& batches, bool bf16, te_int8::Mode mode,
    const te_int8::Recipe& recipe);

class Trainer {
 public:
  Trainer(Gpt model, const TextData& data, TrainOptions options, torch::Device device);

  // Trains up to the last step. Every `eval_every` steps, and after the last, it validates and
  // calls `on_metrics`. Ctrl-C ends it between two steps: then it returns false.
  bool run(const std::function<void(const Metrics&)>& on_metrics);

  int64_t step() const { return loop_.step(); }

  // Everything that run() continues from. Loading checks that `settings` are the saved ones.
  void save(const std::string& path, const examples::Settings& settings) const;
  void load(const std::string& path, const examples::Settings& settings);

 private:
  examples::StepResult train_step();

  Gpt model_;
  const TextData& data_;
  TrainOptions options_;
  torch::Device device_;
  std::vector<Batch> validation_;
  torch::optim::AdamW optimizer_;
  examples::TrainingLoop loop_;
  std::optional<te_int8::Diagnostics> diagnostics_;
};

}  // namespace train_text
