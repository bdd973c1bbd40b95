#include "report.h"

#include <iomanip>
#include <sstream>

#include "../common/device.h"
#include "../common/parameters.h"
#include "../common/text.h"

namespace fashion {

using examples::fixed;
using examples::grouped;

std::string EpochReport::heading() const {
  return "   epoch  train loss  test accuracy        lr  images/s  time left";
}

std::string EpochReport::line(const Metrics& metrics) const {
  std::ostringstream out;
  out << std::setw(8) << metrics.epoch << std::setw(12) << fixed(metrics.train_loss, 4)
      << std::setw(13) << fixed(metrics.test_accuracy, 2) << " %" << std::setw(10)
      << fixed(metrics.learning_rate, 6) << std::setw(10)
      << grouped(static_cast<int64_t>(metrics.items_per_second)) << std::setw(11)
      << examples::clock_time(metrics.seconds_left);
  return out.str();
}

std::string EpochReport::csv_header() const {
  return "epoch,train_loss,test_accuracy,lr,images_per_second";
}

std::vector<std::string> EpochReport::csv_fields(const Metrics& metrics) const {
  return {
      std::to_string(metrics.epoch), fixed(metrics.train_loss, 6), fixed(metrics.test_accuracy, 4),
      fixed(metrics.learning_rate, 8), fixed(metrics.items_per_second, 0)};
}

std::string run_description(const Options& options, const Classifier& model, torch::Device device) {
  const TrainOptions& train = options.train;
  std::ostringstream out;
  out << (options.model == "resnet" ? "ResNet" : "ViT") << " of "
      << grouped(examples::parameter_count(model)) << " parameters, " << train.epochs
      << (train.epochs == 1 ? " epoch of " : " epochs of ") << grouped(options.train_images)
      << " images in batches of " << train.batch << "; seed " << train.seed
      << ". Tested on 10,000 other images after the last epoch. "
      << "Full precision is " << (train.bf16 ? "bf16 autocast" : "fp32") << ". On "
      << examples::described(device) << '.';
  return out.str();
}

}  // namespace fashion
