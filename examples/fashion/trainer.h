// The training loop, with its one line about quantization, and the accuracy.
#pragma once

#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "../common/training_loop.h"
#include "classifier.h"
#include "data.h"

namespace fashion {

struct TrainOptions {
  int64_t epochs = 0;
  int64_t batch = 0;
  double learning_rate = 0;  // the highest
  double weight_decay = 0.05;
  double label_smoothing = 0;
  bool bf16 = false;  // autocast around the forward pass
  uint64_t seed = 0;
  te_int8::Mode mode = te_int8::Mode::Off;  // QAT, or Off: full precision
};

// What is known after an epoch.
struct Metrics : examples::TrainingMetrics {
  int64_t epoch = 0;
  double test_accuracy = 0;  // in percent, in the precision that is trained in
};

// Percent of the images whose class is right, in eval mode (BatchNorm by its running statistics)
// and without gradients. `mode` is Inference, or Off.
double accuracy(
    Classifier& model, const std::vector<Batch>& batches, bool bf16, te_int8::Mode mode);

// What a scope does with each layer of the model in a forward pass.
te_int8::Report scope_report(Classifier& model, const Batch& batch);

class Trainer {
 public:
  Trainer(
      std::shared_ptr<Classifier> model, const Dataset& train, const std::vector<Batch>& test,
      const TrainOptions& options);

  // Trains all epochs and calls `on_metrics` after each. Ctrl-C ends it between two steps: then it
  // returns false.
  bool run(const std::function<void(const Metrics&)>& on_metrics);

 private:
  examples::StepResult train_step();

  std::shared_ptr<Classifier> model_;
  const Dataset& train_;
  const std::vector<Batch>& test_;
  TrainOptions options_;
  int64_t steps_per_epoch_;
  examples::TrainingLoop loop_;
  torch::optim::AdamW optimizer_;
  std::optional<AugmentedEpoch> epoch_;  // the one that is trained on
};

}  // namespace fashion
