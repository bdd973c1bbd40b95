#include "trainer.h"

#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <utility>

#include "../common/bf16_autocast.h"
#include "../common/interrupt.h"
#include "../common/parameters.h"
#include "../common/progress.h"

namespace train_text {

namespace {

double peak_megabytes(torch::Device device) {
  if (!device.is_cuda()) {
    return 0;
  }
  const auto index = static_cast<c10::DeviceIndex>(std::max<int>(device.index(), 0));
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(index);
  return static_cast<double>(stats.allocated_bytes[0].peak) * 1e-6;
}

}  // namespace

double evaluate(
    Gpt& model, const std::vector<Batch>& batches, bool bf16, te_int8::Mode mode,
    const te_int8::Recipe& recipe) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model->is_training();
  model->eval();
  double sum = 0;
  int64_t count = 0;
  {
    te_int8::AutocastGuard guard(*model, mode, recipe);
    for (const auto& [tokens, targets] : batches) {
      const examples::Bf16Autocast autocast(tokens.device(), bf16);
      sum += model->loss(tokens, targets).item<double>() * static_cast<double>(targets.numel());
      count += targets.numel();
    }
  }
  model->train(was_training);
  return sum / static_cast<double>(count);
}

Trainer::Trainer(Gpt model, const TextData& data, TrainOptions options, torch::Device device)
    : model_(std::move(model)),
      data_(data),
      options_(std::move(options)),
      device_(device),
      validation_(data.validation_batches(options_.eval_windows, options_.batch)),
      optimizer_(examples::parameter_groups(*model_, options_.weight_decay, {0.9, 0.95})),
      loss_sum_(torch::zeros({}, torch::dtype(torch::kDouble).device(device))) {
  if (!options_.diagnose.empty()) {
    diagnostics_.emplace(options_.diagnose);
  }
}

void Trainer::train_step() {
  const auto [tokens, targets] = data_.train_batch(options_.seed, step_, options_.batch);
  const auto measurement = diagnostics_ && step_ % options_.diagnose_every == 0
                               ? diagnostics_->measure(step_)
                               : te_int8::Diagnostics::Measurement();
  torch::Tensor loss;
  {
    const examples::Bf16Autocast autocast(device_, options_.bf16);
    te_int8::AutocastGuard guard(*model_, options_.mode, options_.recipe);
    loss = model_->loss(tokens, targets);
  }
  optimizer_.zero_grad();
  loss.backward();
  torch::nn::utils::clip_grad_norm_(model_->parameters(), options_.clip);
  examples::set_learning_rate(optimizer_, options_.schedule.at(step_));
  optimizer_.step();

  loss_sum_ += loss.detach();
  ++loss_count_;
  ++step_;
}

bool Trainer::run(const std::function<void(const Metrics&)>& on_metrics) {
  const int64_t tokens_per_step = options_.batch * model_->config().context;
  examples::Progress progress(step_, options_.steps, tokens_per_step, "tokens");
  model_->train();
  while (step_ < options_.steps) {
    if (examples::interrupted()) {
      progress.clear_line();
      return false;
    }
    progress.step_begins();
    train_step();
    const bool last = step_ == options_.steps;
    const bool evaluates = last || step_ % options_.eval_every == 0;
    // A GPU works behind the CPU's back: reading a value waits for it, so that the time is right.
    const double loss_sum = evaluates ? loss_sum_.item<double>() : 0.0;
    progress.step_ended(step_);
    if (!evaluates) {
      continue;
    }
    Metrics metrics;
    metrics.step = step_;
    metrics.tokens = step_ * tokens_per_step;
    metrics.train_loss = loss_sum / static_cast<double>(loss_count_);
    metrics.learning_rate = options_.schedule.at(step_ - 1);
    metrics.tokens_per_second = progress.items_per_second();
    metrics.peak_mb = peak_megabytes(device_);
    const bool quantized = options_.mode != te_int8::Mode::Off;
    metrics.validation_loss = evaluate(
        model_, validation_, options_.bf16,
        quantized ? te_int8::Mode::Inference : te_int8::Mode::Off, options_.recipe);
    metrics.seconds_left = progress.seconds_left(step_);
    loss_sum_.zero_();
    loss_count_ = 0;
    progress.clear_line();
    progress.restart_speed();
    on_metrics(metrics);
  }
  return true;
}

void Trainer::save(const std::string& path, const examples::Settings& settings) const {
  const examples::Counters counters = {
      {"step", torch::tensor(step_)},
      {"loss_sum", loss_sum_},
      {"loss_count", torch::tensor(loss_count_)}};
  examples::save_checkpoint(path, *model_, optimizer_, counters, settings, device_);
}

void Trainer::load(const std::string& path, const examples::Settings& settings) {
  examples::Counters counters = {{"step", {}}, {"loss_sum", {}}, {"loss_count", {}}};
  examples::load_checkpoint(path, *model_, optimizer_, counters, settings, device_);
  step_ = counters["step"].item<int64_t>();
  loss_sum_ = counters["loss_sum"];
  loss_count_ = counters["loss_count"].item<int64_t>();
}

}  // namespace train_text
