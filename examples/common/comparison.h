// Does training with INT8 cost quality? The same model, seed and batches in full precision and by a
// recipe, both evaluated in full precision and in INT8.
#pragma once

#include <te_int8/te_int8.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "atomic_file.h"
#include "csv.h"
#include "program_options.h"
#include "recipes.h"
#include "text.h"

namespace examples {

template <typename Model>
struct TrainedPair {
  Model full, recipe;
  double full_seconds = 0;
  double recipe_seconds = 0;
};

// Shows each evaluation of both trainings and writes it to curves.csv, with the name of the run in
// the last column. `train(mode, record)` gives a model, or none when Ctrl-C ended it, and hands its
// metrics to `record`; `report` makes lines and rows of them, as TrainingReport does.
template <typename Model, typename Report, typename Train>
std::optional<TrainedPair<Model>> train_both_ways(
    const ProgramOptions& options, const Report& report, const Train& train) {
  std::filesystem::create_directories(options.out);
  CsvWriter curves(options.out + "/curves.csv", report.csv_header() + ",run");
  const auto run = [&](te_int8::Mode mode, const std::string& name,
                       double& seconds) -> std::optional<Model> {
    const auto start = std::chrono::steady_clock::now();
    std::cout << "\nTraining: " << name << '\n' << report.heading() << std::endl;
    std::optional<Model> model = train(mode, [&](const auto& metrics) {
      std::cout << report.line(metrics) << std::endl;
      std::vector<std::string> row = report.csv_fields(metrics);
      row.push_back(name);
      curves.row(row);
    });
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return model;
  };
  double full_seconds = 0;
  double recipe_seconds = 0;
  const auto full = run(te_int8::Mode::Off, recipe_title("none"), full_seconds);
  if (!full) {
    return std::nullopt;
  }
  const auto recipe = run(te_int8::Mode::QAT, recipe_title(options.recipe), recipe_seconds);
  if (!recipe) {
    return std::nullopt;
  }
  return TrainedPair<Model>{*full, *recipe, full_seconds, recipe_seconds};
}

// What is measured, and how it is written.
struct Measure {
  std::string quantity;    // "validation loss, nats per byte"
  std::string difference;  // "difference, nats per byte"
  std::string column;      // of a CSV
  int digits = 4;
};

// A value for each measure.
struct Comparison {
  std::vector<double> full_full;    // trained in full precision, evaluated in full precision
  std::vector<double> full_int8;    // trained in full precision, evaluated in INT8
  std::vector<double> recipe_full;  // trained by the recipe, evaluated in full precision
  std::vector<double> recipe_int8;  // trained by the recipe, evaluated in INT8
};

// `evaluate(model, mode)` gives the measures' values.
template <typename Model, typename Evaluate>
Comparison evaluate_both_ways(TrainedPair<Model>& pair, const Evaluate& evaluate) {
  using te_int8::Mode;
  Comparison result;
  result.full_full = evaluate(pair.full, Mode::Off);
  result.full_int8 = evaluate(pair.full, Mode::Inference);
  result.recipe_full = evaluate(pair.recipe, Mode::Off);
  result.recipe_int8 = evaluate(pair.recipe, Mode::Inference);
  return result;
}

// A table of the measure at `index`. Rows: how the model was trained. Columns: how it is evaluated.
// Then the differences that matter.
inline std::string comparison_markdown(
    const Comparison& result, const std::vector<Measure>& measures, size_t index,
    const std::string& recipe) {
  const Measure& measure = measures[index];
  const double full_full = result.full_full[index];
  const double full_int8 = result.full_int8[index];
  const double recipe_full = result.recipe_full[index];
  const double recipe_int8 = result.recipe_int8[index];
  const auto row = [&](const std::string& name, double full, double int8) {
    return "| " + name + " | " + fixed(full, measure.digits) + " | " + fixed(int8, measure.digits) +
           " |\n";
  };
  const auto difference = [&](const std::string& name, double value) {
    return "| " + name + " | " + (value < 0 ? "" : "+") + fixed(value, measure.digits) + " |\n";
  };
  return "| " + measure.quantity +
         " | evaluated in full precision | evaluated in INT8 |\n|---|---|---|\n" +
         row("trained in full precision", full_full, full_int8) +
         row("trained by " + recipe, recipe_full, recipe_int8) + "\n| " + measure.difference +
         " | |\n|---|---|\n" +
         difference(
             recipe + " in INT8, minus full precision in full precision", recipe_int8 - full_full) +
         difference(
             recipe + " minus full precision, both evaluated in full precision",
             recipe_full - full_full) +
         difference(
             "the same " + recipe + " weights, INT8 minus full precision",
             recipe_int8 - recipe_full) +
         difference(
             "the same full-precision weights, INT8 minus full precision", full_int8 - full_full);
}

inline std::string comparison_csv(
    const Comparison& result, const std::vector<Measure>& measures, const std::string& recipe) {
  std::string csv = "trained,evaluated";
  for (const Measure& measure : measures) {
    csv += "," + measure.column;
  }
  const auto row = [&](const std::string& trained, const std::string& evaluated,
                       const std::vector<double>& values) {
    csv.append("\n").append(trained).append(",").append(evaluated);
    for (size_t i = 0; i < measures.size(); ++i) {
      csv.append(",").append(fixed(values[i], measures[i].digits + 2));
    }
  };
  row("full precision", "full precision", result.full_full);
  row("full precision", "INT8", result.full_int8);
  row(recipe, "full precision", result.recipe_full);
  row(recipe, "INT8", result.recipe_int8);
  return csv + "\n";
}

// Evaluates the pair, prints the tables and writes compare.md and compare.csv. `description` says
// what was trained.
template <typename Model, typename Evaluate>
void tell_comparison(
    const ProgramOptions& options, const std::vector<Measure>& measures, TrainedPair<Model>& pair,
    const Evaluate& evaluate, const std::string& description) {
  const std::string recipe = recipe_title(options.recipe);
  const Comparison result = evaluate_both_ways(pair, evaluate);
  std::string text;
  for (size_t i = 0; i < measures.size(); ++i) {
    text += comparison_markdown(result, measures, i, recipe) + "\n";
  }
  text += description + " Trained in " + clock_time(pair.full_seconds) + " (full precision) and " +
          clock_time(pair.recipe_seconds) + " (" + recipe + ").\n\nCommand: `" +
          options.command_line + "`\n";
  std::cout << '\n' << text;
  write_text_atomically(options.out + "/compare.md", text);
  write_text_atomically(options.out + "/compare.csv", comparison_csv(result, measures, recipe));
  std::cout << "\nWritten: compare.md, compare.csv and curves.csv in " << options.out << std::endl;
}

}  // namespace examples
