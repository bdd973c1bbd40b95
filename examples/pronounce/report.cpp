#include "report.h"

#include <algorithm>
#include <sstream>

#include "../common/device.h"
#include "../common/parameters.h"
#include "../common/text.h"

namespace pronounce {

using examples::grouped;

const examples::TrainingReport<Metrics>& training_report() {
  const auto per = [](const Metrics& metrics) { return 100 * metrics.held_out.phoneme_error_rate; };
  const auto wer = [](const Metrics& metrics) { return 100 * metrics.held_out.word_error_rate; };
  static const examples::TrainingReport<Metrics> report(
      "nats", {{"val loss", "nats", "val_loss", [](const Metrics& m) { return m.held_out.loss; }},
               {"PER", "%", "per", per, 2},
               {"WER", "%", "wer", wer, 2}});
  return report;
}

std::string run_description(
    const Options& options, const Dictionary& dictionary, const Split& words,
    const PronouncerImpl& model, torch::Device device) {
  const PronouncerConfig& config = options.model;
  const TrainOptions& train = options.train;
  const auto held_out = static_cast<int64_t>(words.held_out.size());
  std::ostringstream out;
  out << "Transformer of " << grouped(examples::parameter_count(model)) << " parameters ("
      << config.layers << " + " << config.layers << " layers of width " << config.width << ", "
      << config.heads << " heads), " << train.steps << " steps of " << train.batch
      << " words out of " << grouped(static_cast<int64_t>(words.training.size())) << "; seed "
      << train.seed << ". Error rates on " << grouped(std::min(train.eval_words, held_out))
      << " of " << grouped(held_out) << " other words; " << grouped(dictionary.skipped)
      << " entries with other characters than letters and "
      << "apostrophes are left out. Full precision is " << (options.tf32 ? "tf32" : "fp32")
      << ". On " << examples::described(device) << '.';
  return out.str();
}

}  // namespace pronounce
