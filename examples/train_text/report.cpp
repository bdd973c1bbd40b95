#include "report.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

#include "../common/device.h"
#include "../common/parameters.h"
#include "../common/text.h"

namespace train_text {

using examples::fixed;
using examples::grouped;

std::string metrics_heading() {
  return "    step      tokens  train loss  val loss        lr  tokens/s  time left\n"
         "                      nats/byte  nats/byte";
}

std::string metrics_line(const Metrics& metrics) {
  std::ostringstream out;
  out << std::setw(8) << metrics.step << std::setw(12) << grouped(metrics.tokens) << std::setw(12)
      << fixed(metrics.train_loss, 4) << std::setw(10) << fixed(metrics.validation_loss, 4)
      << std::setw(10) << fixed(metrics.learning_rate, 6) << std::setw(10)
      << grouped(static_cast<int64_t>(metrics.tokens_per_second)) << std::setw(11)
      << examples::clock_time(metrics.seconds_left);
  return out.str();
}

std::string metrics_header() { return "step,tokens,train_loss,val_loss,lr,tokens_per_second,peak_mb"; }

std::vector<std::string> metrics_fields(const Metrics& metrics) {
  const auto exact = [](double value) {
    std::ostringstream out;
    out << std::setprecision(17) << value;
    return out.str();
  };
  return {std::to_string(metrics.step),    std::to_string(metrics.tokens),
          exact(metrics.train_loss),       exact(metrics.validation_loss),
          fixed(metrics.learning_rate, 8), fixed(metrics.tokens_per_second, 0),
          fixed(metrics.peak_mb, 1)};
}

std::string run_description(
    const Options& options, const TextData& data, const GptImpl& model, torch::Device device) {
  const GptConfig& config = options.model;
  const TrainOptions& train = options.train;
  std::ostringstream out;
  out << "GPT of " << grouped(examples::parameter_count(model)) << " parameters (" << config.layers
      << " layers of width " << config.width << ", " << config.heads << " heads, context "
      << config.context << "), " << train.steps << " steps of " << train.batch
      << " windows: " << grouped(train.steps * train.batch * config.context) << " tokens out of "
      << grouped(data.train_bytes()) << " bytes; seed " << train.seed << ". Validation on "
      << grouped(std::min(train.eval_windows, data.validation_windows()) * config.context) << " of "
      << grouped(data.validation_bytes()) << " other bytes, where byte frequencies alone give "
      << fixed(data.unigram_loss(), 4) << " nats. Full precision is "
      << (train.bf16 ? "bf16 autocast" : "fp32") << ". On "
      << examples::described(device) << '.';
  return out.str();
}

std::string printable(const std::string& bytes) {
  std::string text = bytes;
  std::replace_if(
      text.begin(), text.end(),
      [](char character) { return character != '\n' && (character < ' ' || character > '~'); },
      '?');
  return text;
}

}  // namespace train_text
