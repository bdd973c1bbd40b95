// Does training with INT8 cost accuracy? The same model, seed and batches in full precision and by a
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
#include "text.h"

namespace examples {

// What is measured, and how it is written.
struct Measure {
  std::string quantity;    // "validation loss, nats per byte"
  std::string difference;  // "difference, nats per byte"
  std::string column;      // of a CSV
  int digits = 4;
};

struct Comparison {
  double full_full = 0;    // trained in full precision, evaluated in full precision
  double full_int8 = 0;    // trained in full precision, evaluated in INT8
  double recipe_full = 0;  // trained by the recipe, evaluated in full precision
  double recipe_int8 = 0;  // trained by the recipe, evaluated in INT8
  double full_seconds = 0;
  double recipe_seconds = 0;
};

// `train(mode)` gives a model, or nothing when Ctrl-C ended it; `evaluate(model, mode)` measures it.
template <typename Train, typename Evaluate>
std::optional<Comparison> train_both_ways(const Train& train, const Evaluate& evaluate) {
  using te_int8::Mode;
  Comparison result;
  const auto timed = [&](Mode mode, double& seconds) {
    const auto start = std::chrono::steady_clock::now();
    auto model = train(mode);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return model;
  };
  auto full = timed(Mode::Off, result.full_seconds);
  if (!full) {
    return std::nullopt;
  }
  auto quantized = timed(Mode::QAT, result.recipe_seconds);
  if (!quantized) {
    return std::nullopt;
  }
  result.full_full = evaluate(*full, Mode::Off);
  result.full_int8 = evaluate(*full, Mode::Inference);
  result.recipe_full = evaluate(*quantized, Mode::Off);
  result.recipe_int8 = evaluate(*quantized, Mode::Inference);
  return result;
}

// Trains, shows each evaluation and adds it to the curves, with the name of the run in the last
// column. `line` and `fields` are what the example makes of its metrics.
template <typename Trainer, typename Line, typename Fields>
bool train_with_curves(
    Trainer& trainer, const std::string& run, CsvWriter& curves, const Line& line,
    const Fields& fields) {
  return trainer.run([&](const auto& metrics) {
    std::cout << line(metrics) << std::endl;
    std::vector<std::string> row = fields(metrics);
    row.push_back(run);
    curves.row(row);
  });
}

// Rows: how the model was trained. Columns: how it is evaluated. Then the differences that matter.
inline std::string comparison_markdown(
    const Comparison& result, const Measure& measure, const std::string& recipe) {
  const auto row = [&](const std::string& name, double full, double int8) {
    return "| " + name + " | " + fixed(full, measure.digits) + " | " + fixed(int8, measure.digits) +
           " |\n";
  };
  const auto difference = [&](const std::string& name, double value) {
    return "| " + name + " | " + (value < 0 ? "" : "+") + fixed(value, measure.digits) + " |\n";
  };
  return "| " + measure.quantity +
         " | evaluated in full precision | evaluated in INT8 |\n|---|---|---|\n" +
         row("trained in full precision", result.full_full, result.full_int8) +
         row("trained by " + recipe, result.recipe_full, result.recipe_int8) + "\n| " +
         measure.difference + " | |\n|---|---|\n" +
         difference(
             recipe + " in INT8, minus full precision in full precision",
             result.recipe_int8 - result.full_full) +
         difference(
             recipe + " minus full precision, both evaluated in full precision",
             result.recipe_full - result.full_full) +
         difference(
             "the same " + recipe + " weights, INT8 minus full precision",
             result.recipe_int8 - result.recipe_full) +
         difference(
             "the same full-precision weights, INT8 minus full precision",
             result.full_int8 - result.full_full);
}

inline std::string comparison_csv(
    const Comparison& result, const Measure& measure, const std::string& recipe) {
  std::string csv = "trained,evaluated," + measure.column + "\n";
  const auto row = [&](const std::string& trained, const std::string& evaluated, double value) {
    csv += trained + "," + evaluated + "," + fixed(value, measure.digits + 2) + "\n";
  };
  row("full precision", "full precision", result.full_full);
  row("full precision", "INT8", result.full_int8);
  row(recipe, "full precision", result.recipe_full);
  row(recipe, "INT8", result.recipe_int8);
  return csv;
}

// Prints the tables and writes compare.md and compare.csv into the folder `out`. `description` says
// what was trained, `command` how to do it again.
inline void tell_comparison(
    const Comparison& result, const Measure& measure, const std::string& recipe,
    const std::filesystem::path& out, const std::string& description, const std::string& command) {
  const std::string text = comparison_markdown(result, measure, recipe) + "\n" + description +
                           " Trained in " + clock_time(result.full_seconds) +
                           " (full precision) and " + clock_time(result.recipe_seconds) + " (" +
                           recipe + ").\n\nCommand: `" + command + "`\n";
  std::cout << '\n' << text;
  write_text_atomically(out / "compare.md", text);
  write_text_atomically(out / "compare.csv", comparison_csv(result, measure, recipe));
  std::cout << "\nWritten: compare.md, compare.csv and curves.csv in " << out.string() << std::endl;
}

}  // namespace examples
