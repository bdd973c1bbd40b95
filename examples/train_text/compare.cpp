#include "compare.h"

#include <filesystem>
#include <iostream>
#include <sstream>

#include "../common/atomic_file.h"
#include "../common/csv.h"
#include "../common/progress.h"
#include "../common/text.h"
#include "report.h"

namespace train_text {

using examples::fixed;

namespace {

std::string recipe_title(const std::string& recipe) {
  return recipe == "qat" ? "QAT" : recipe == "int8" ? "INT8 training" : "SwitchBack";
}

struct Run {
  Gpt model = nullptr;
  double seconds = 0;
  bool finished = false;
};

// Every run starts from the same weights: they depend on the seed alone.
Run train(
    const Options& options, te_int8::Mode mode, const std::string& name, const TextData& data,
    torch::Device device, examples::CsvWriter& curves) {
  torch::manual_seed(options.train.seed);
  Run run;
  run.model = Gpt(options.model);
  run.model->to(device);
  TrainOptions train_options = options.train;
  train_options.mode = mode;
  const examples::Progress clock(0, 1, 1);
  Trainer trainer(run.model, data, train_options, device);
  std::cout << '\n' << "Training in " << name << '\n' << metrics_heading() << std::endl;
  run.finished = trainer.run([&](const Metrics& metrics) {
    std::cout << metrics_line(metrics) << std::endl;
    std::vector<std::string> fields = metrics_fields(metrics);
    fields.push_back(name);
    curves.row(fields);
  });
  run.seconds = clock.seconds();
  return run;
}

}  // namespace

std::string comparison_markdown(const Comparison& result, const std::string& recipe) {
  const std::string title = recipe_title(recipe);
  const auto row = [](const std::string& name, double full, double int8) {
    return "| " + name + " | " + fixed(full, 4) + " | " + fixed(int8, 4) + " |\n";
  };
  const auto difference = [](const std::string& name, double value) {
    return "| " + name + " | " + (value < 0 ? "" : "+") + fixed(value, 4) + " |\n";
  };
  return "| validation loss, nats per byte | evaluated in full precision | evaluated in INT8 |\n"
         "|---|---|---|\n" +
         row("trained in full precision", result.full_full, result.full_int8) +
         row("trained by " + title, result.recipe_full, result.recipe_int8) +
         "\n| difference, nats per byte | |\n|---|---|\n" +
         difference(
             title + " in INT8, minus full precision in full precision",
             result.recipe_int8 - result.full_full) +
         difference(
             title + " minus full precision, both evaluated in full precision",
             result.recipe_full - result.full_full) +
         difference(
             "the same " + title + " weights, INT8 minus full precision",
             result.recipe_int8 - result.recipe_full) +
         difference(
             "the same full-precision weights, INT8 minus full precision",
             result.full_int8 - result.full_full);
}

std::string comparison_csv(const Comparison& result, const std::string& recipe) {
  std::string csv = "trained,evaluated,val_loss\n";
  const auto row = [&](const std::string& trained, const std::string& evaluated, double loss) {
    csv += trained + "," + evaluated + "," + fixed(loss, 6) + "\n";
  };
  row("full precision", "full precision", result.full_full);
  row("full precision", "INT8", result.full_int8);
  row(recipe_title(recipe), "full precision", result.recipe_full);
  row(recipe_title(recipe), "INT8", result.recipe_int8);
  return csv;
}

bool compare(const Options& options, const TextData& data, torch::Device device) {
  std::filesystem::create_directories(options.out);
  const std::filesystem::path out = options.out;
  const std::string title = recipe_title(options.recipe);
  examples::CsvWriter curves(out / "curves.csv", metrics_header() + ",run");

  Run full = train(options, te_int8::Mode::Off, "full precision", data, device, curves);
  if (!full.finished) {
    return false;
  }
  Run quantized = train(options, te_int8::Mode::QAT, title, data, device, curves);
  if (!quantized.finished) {
    return false;
  }

  const TrainOptions& train = options.train;
  const auto batches = data.validation_batches(train.eval_windows, train.batch);
  const auto loss = [&](Run& run, te_int8::Mode mode) {
    return evaluate(run.model, batches, train.bf16, mode, train.recipe);
  };
  const Comparison result = {
      .full_full = loss(full, te_int8::Mode::Off),
      .full_int8 = loss(full, te_int8::Mode::Inference),
      .recipe_full = loss(quantized, te_int8::Mode::Off),
      .recipe_int8 = loss(quantized, te_int8::Mode::Inference)};

  std::ostringstream text;
  text << comparison_markdown(result, options.recipe) << '\n'
       << run_description(options, data, *full.model, device) << " Trained in "
       << examples::clock_time(full.seconds) << " (full precision) and "
       << examples::clock_time(quantized.seconds) << " (" << title << ").\n\nCommand: `"
       << options.command_line << "`\n";
  std::cout << '\n' << text.str();
  examples::write_text_atomically(out / "compare.md", text.str());
  examples::write_text_atomically(out / "compare.csv", comparison_csv(result, options.recipe));
  std::cout << "\nWritten: compare.md, compare.csv and curves.csv in " << options.out
            << "\nA picture of the curves: scripts/plot_curves.py " << (out / "curves.csv").string()
            << '\n';
  return true;
}

}  // namespace train_text
