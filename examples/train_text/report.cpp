#include "report.h"

#include <algorithm>
#include <sstream>

#include "../common/device.h"
#include "../common/parameters.h"
#include "../common/text.h"

namespace train_text {

using examples::fixed;
using examples::grouped;

const examples::TrainingReport<Metrics>& training_report() {
  static const examples::TrainingReport<Metrics> report(
      "nats/byte",
      {{"val loss", "nats/byte", "val_loss", [](const Metrics& m) { return m.validation_loss; }}});
  return report;
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
      << (train.bf16 ? "bf16 autocast" : "fp32") << ". On " << examples::described(device) << '.';
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
