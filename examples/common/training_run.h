// One training, shown and kept.
#pragma once

#include <iostream>
#include <optional>
#include <string>

#include "csv.h"
#include "program_options.h"

namespace examples {

// Shows each evaluation and writes it to --csv. `description` says what is trained; `report` makes
// lines and rows of the trainer's metrics, as TrainingReport does. False when Ctrl-C ended it.
template <typename Trainer, typename Report>
bool run_and_report(
    Trainer& trainer, const Report& report, const ProgramOptions& options,
    const std::string& description) {
  std::optional<CsvWriter> csv;
  if (!options.csv.empty()) {
    csv.emplace(options.csv, report.csv_header());
  }
  std::cout << description << "\nRecipe: " << options.recipe << "\n\n"
            << report.heading() << std::endl;
  return trainer.run([&](const auto& metrics) {
    std::cout << report.line(metrics) << std::endl;
    if (csv) {
      csv->row(report.csv_fields(metrics));
    }
  });
}

}  // namespace examples
