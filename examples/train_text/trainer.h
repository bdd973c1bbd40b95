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
#include "../common/schedule.h"
#include "gpt.h"
#include "text_data.h"

namespace train_text {

struct TrainOptions {
  int64_t steps = 0;
  int64_t batch = 0;  // windows per step
  examples::WarmupCosine schedule;
  double weight_decay = 0.1;
  double clip = 1.0;  // the gradients' largest norm
  bool bf16 = false;  // autocast around the forward pass
  uint64_t seed = 0;
  int64_t eval_every = 0;
  int64_t eval_windows = 0;
  te_int8::Mode mode = te_int8::Mode::Off;  // QAT, or Off: full precision
  te_int8::Recipe recipe;
  std::string diagnose;  // a CSV file, or empty
  int64_t diagnose_every = 100;
};

// What is known after an evaluation.
struct Metrics {
  int64_t step = 0;
  int64_t tokens = 0;          // trained on so far
  double train_loss = 0;       // mean since the last evaluation, nats per byte
  double validation_loss = 0;  // in the precision that is trained in
  double learning_rate = 0;    // of the last step
  double tokens_per_second = 0;
  double seconds_left = 0;
  double peak_mb = 0;  // of device memory in use since the program began; 0 on the CPU
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

  int64_t step() const { return step_; }

  // Everything that run() continues from. Loading checks that `settings` are the saved ones.
  void save(const std::string& path, const examples::Settings& settings) const;
  void load(const std::string& path, const examples::Settings& settings);

 private:
  void train_step();

  Gpt model_;
  const TextData& data_;
  TrainOptions options_;
  torch::Device device_;
  std::vector<Batch> validation_;
  torch::optim::AdamW optimizer_;
  int64_t step_ = 0;
  torch::Tensor loss_sum_;  // since the last evaluation; on the device: no step waits for it
  int64_t loss_count_ = 0;
  std::optional<te_int8::Diagnostics> diagnostics_;
};

}  // namespace train_text
