// The loop of a trainer: steps with progress, an evaluation now and then, and an end by Ctrl-C.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "checkpoint.h"
#include "interrupt.h"
#include "progress.h"
#include "schedule.h"

namespace examples {

// What a trainer has to know whose training is counted in steps.
struct TrainingOptions {
  int64_t steps = 0;
  int64_t batch = 0;  // windows, words: what a step is made of
  WarmupCosine schedule;
  double weight_decay = 0.1;
  double clip = 1.0;  // the gradients' largest norm
  uint64_t seed = 0;
  int64_t eval_every = 0;
  te_int8::Mode mode = te_int8::Mode::Off;  // QAT, or Off: full precision
  te_int8::Recipe recipe;
};

// What is known of the training when an evaluation has been made. Items are tokens or images.
struct TrainingMetrics {
  int64_t step = 0;
  int64_t items = 0;         // trained on so far
  double train_loss = 0;     // mean since the last evaluation
  double learning_rate = 0;  // of the last step
  double items_per_second = 0;
  double seconds_left = 0;
  double peak_mb = 0;  // of device memory in use since the program began; 0 on the CPU
};

struct StepResult {
  torch::Tensor loss;
  int64_t items = 0;
};

inline double peak_megabytes(torch::Device device) {
  if (!device.is_cuda()) {
    return 0;
  }
  const auto index = static_cast<c10::DeviceIndex>(std::max<int>(device.index(), 0));
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(index);
  return static_cast<double>(stats.allocated_bytes[0].peak) * 1e-6;
}

class TrainingLoop {
 public:
  // `items` names what a step takes: tokens, images.
  TrainingLoop(const WarmupCosine& schedule, std::string items, torch::Device device)
      : schedule_(schedule),
        items_name_(std::move(items)),
        device_(device),
        loss_sum_(torch::zeros({}, torch::dtype(torch::kDouble).device(device))) {}

  int64_t step() const { return step_; }  // how many were made
  double learning_rate() const { return schedule_.at(step_); }

  // `train_step` makes one step and returns a StepResult. Every `eval_every` steps, and after the
  // last, `report` gets the metrics and what `evaluate` returns. Ctrl-C ends it between two steps:
  // then it returns false.
  template <typename TrainStep, typename Evaluate, typename Report>
  bool run(
      int64_t steps, int64_t eval_every, const TrainStep& train_step, const Evaluate& evaluate,
      const Report& report) {
    Progress progress(step_, steps, items_name_);
    while (step_ < steps) {
      if (interrupted()) {
        progress.clear_line();
        return false;
      }
      progress.step_begins();
      const StepResult result = train_step();
      loss_sum_ += result.loss.detach();
      items_ += result.items;
      ++loss_count_;
      ++step_;
      const bool evaluates = step_ == steps || step_ % eval_every == 0;
      // A GPU works behind the CPU's back: reading a value waits for it, so that the time is right.
      const double loss_sum = evaluates ? loss_sum_.item<double>() : 0.0;
      progress.step_ended(step_, result.items);
      if (!evaluates) {
        continue;
      }
      TrainingMetrics metrics;
      metrics.step = step_;
      metrics.items = items_;
      metrics.train_loss = loss_sum / static_cast<double>(loss_count_);
      metrics.learning_rate = schedule_.at(step_ - 1);
      metrics.items_per_second = progress.items_per_second();
      metrics.peak_mb = peak_megabytes(device_);
      const auto evaluation = evaluate();
      metrics.seconds_left = progress.seconds_left(step_);
      loss_sum_.zero_();
      loss_count_ = 0;
      progress.clear_line();
      progress.restart_speed();
      report(metrics, evaluation);
    }
    return true;
  }

  // What a checkpoint keeps of it.
  Counters counters() const {
    return {
        {"step", torch::tensor(step_)},
        {"items", torch::tensor(items_)},
        {"loss_sum", loss_sum_},
        {"loss_count", torch::tensor(loss_count_)}};
  }
  void restore(const Counters& counters) {
    step_ = counters.at("step").item<int64_t>();
    items_ = counters.at("items").item<int64_t>();
    loss_sum_ = counters.at("loss_sum");
    loss_count_ = counters.at("loss_count").item<int64_t>();
  }

 private:
  WarmupCosine schedule_;
  std::string items_name_;
  torch::Device device_;
  int64_t step_ = 0;
  int64_t items_ = 0;
  torch::Tensor loss_sum_;  // since the last evaluation; on the device: no step waits for it
  int64_t loss_count_ = 0;
};

}  // namespace examples
