// The training loop, with its one line about quantization, and the error rates.
#pragma once

#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "../common/training_loop.h"
#include "pronouncer.h"
#include "word_batches.h"

namespace pronounce {

struct TrainOptions : examples::TrainingOptions {  // a batch is of words
  double label_smoothing = 0.1;
  int64_t length_unit = 1;  // see padded_length
  int64_t eval_words = 0;
};

// In the precision that is trained in.
struct Evaluation {
  double loss = 0;  // nats per phoneme, without label smoothing
  double phoneme_error_rate = 0;
  double word_error_rate = 0;
};

struct Metrics : examples::TrainingMetrics {
  Evaluation held_out;
};

// In eval mode and without gradients. `mode` is Inference, or Off for full precision.
Evaluation evaluate(
    Pronouncer& model, const std::vector<EvaluationBatch>& batches, int64_t length_unit,
    te_int8::Mode mode, const te_int8::Recipe& recipe);

class Trainer {
 public:
  Trainer(Pronouncer model, const Split& words, TrainOptions options, torch::Device device);

  // Trains up to the last step. Every `eval_every` steps, and after the last, it evaluates and
  // calls `on_metrics`. Ctrl-C ends it between two steps: then it returns false.
  bool run(const std::function<void(const Metrics&)>& on_metrics);

 private:
  examples::StepResult train_step();

  Pronouncer model_;
  TrainOptions options_;
  TrainingBatches batches_;
  std::vector<EvaluationBatch> held_out_;
  torch::optim::AdamW optimizer_;
  examples::TrainingLoop loop_;
};

}  // namespace pronounce
