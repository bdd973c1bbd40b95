// How the evaluations of a training that is counted in tokens are shown: a line each for people, a
// row each in a CSV. What every such trainer reports stands around the example's own columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iomanip>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "text.h"
#include "training_loop.h"

namespace examples {

// `Metrics` are TrainingMetrics and what the example adds to them.
template <typename Metrics>
class TrainingReport {
 public:
  struct Column {
    std::string heading, unit;
    std::string csv;  // its name there
    std::function<double(const Metrics&)> value;
    int digits = 4;
  };

  TrainingReport(std::string loss_unit, std::vector<Column> columns)
      : loss_unit_(std::move(loss_unit)), columns_(std::move(columns)) {}

  std::string heading() const {
    std::ostringstream names, units;
    names << "    step      tokens  train loss";
    units << std::setw(32) << loss_unit_;
    for (const Column& column : columns_) {
      names << std::setw(kWidth) << column.heading;
      units << std::setw(kWidth) << column.unit;
    }
    names << "        lr  tokens/s  time left\n";
    return names.str() + units.str();
  }

  std::string line(const Metrics& metrics) const {
    std::ostringstream out;
    out << std::setw(8) << metrics.step << std::setw(12) << grouped(metrics.items) << std::setw(12)
        << fixed(metrics.train_loss, 4);
    for (const Column& column : columns_) {
      out << std::setw(kWidth) << fixed(column.value(metrics), column.digits);
    }
    out << std::setw(10) << fixed(metrics.learning_rate, 6) << std::setw(10)
        << grouped(static_cast<int64_t>(metrics.items_per_second)) << std::setw(11)
        << clock_time(metrics.seconds_left);
    return out.str();
  }

  std::string csv_header() const {
    std::string header = "step,tokens,train_loss";
    for (const Column& column : columns_) {
      header += "," + column.csv;
    }
    return header + ",lr,tokens_per_second,peak_mb";
  }

  // What is compared between runs has all its digits.
  std::vector<std::string> csv_fields(const Metrics& metrics) const {
    const auto exact = [](double value) {
      std::ostringstream out;
      out << std::setprecision(17) << value;
      return out.str();
    };
    std::vector<std::string> fields = {
        std::to_string(metrics.step), std::to_string(metrics.items), exact(metrics.train_loss)};
    std::transform(
        columns_.begin(), columns_.end(), std::back_inserter(fields),
        [&](const Column& column) { return exact(column.value(metrics)); });
    fields.push_back(fixed(metrics.learning_rate, 8));
    fields.push_back(fixed(metrics.items_per_second, 0));
    fields.push_back(fixed(metrics.peak_mb, 1));
    return fields;
  }

 private:
  static constexpr int kWidth = 10;
  std::string loss_unit_;
  std::vector<Column> columns_;
};

}  // namespace examples
