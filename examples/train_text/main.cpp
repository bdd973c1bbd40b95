// Trains a GPT on real text with INT8 in its forward pass. The one line that makes it so is in
// trainer.cpp; this file only puts the parts together.
#include <torch/torch.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <stdexcept>

#include "../common/csv.h"
#include "../common/program.h"
#include "../common/recipes.h"
#include "../common/reproducible.h"
#include "compare.h"
#include "options.h"
#include "report.h"
#include "sample.h"
#include "text_data.h"
#include "trainer.h"

namespace train_text {

namespace {

std::string load_text(const Options& options) {
  if (!std::filesystem::exists(options.data)) {
    throw std::runtime_error(
        "there is no text " + options.data +
        "\nThe default is the King James Bible. Debian and Ubuntu have it:\n"
        "  apt-get install bible-kjv && bible -f gen1:1-rev22:21 > kjv.txt\n"
        "Then say --data kjv.txt, or --data with any other text of at least some 100 kB.");
  }
  return read_text(options.data);
}

int train(
    const Options& options, const TextData& data, const std::string& text, torch::Device device) {
  auto model = examples::seeded_model<Gpt>(options.model, options.train.seed, device);
  if (!options.init.empty()) {
    examples::load_model(options.init, *model, device);
    std::cout << "Begins with the model of " << options.init << '\n';
  }
  Trainer trainer(model, data, options.train, device);
  const examples::Settings settings = run_settings(options, text);
  if (options.resume) {
    trainer.load(options.checkpoint, settings);
    std::cout << "Resumed from " << options.checkpoint << " after step " << trainer.step() << '\n';
  }
  if (!options.checkpoint.empty()) {
    trainer.save(
        options.checkpoint, settings);  // what cannot be written should fail now, not later
  }
  const auto& report = training_report();
  std::optional<examples::CsvWriter> csv;
  if (!options.csv.empty()) {
    const std::string header = report.csv_header();
    csv.emplace(
        options.resume ? examples::CsvWriter::resume(options.csv, header, trainer.step())
                       : examples::CsvWriter(options.csv, header));
  }

  std::cout << run_description(options, data, *model, device) << "\nRecipe: " << options.recipe
            << "\n\n"
            << report.heading() << std::endl;
  const bool finished = trainer.run([&](const Metrics& metrics) {
    std::cout << report.line(metrics) << std::endl;
    if (csv) {
      csv->row(report.csv_fields(metrics));
    }
    if (!options.checkpoint.empty()) {
      trainer.save(options.checkpoint, settings);
    }
  });
  if (!finished) {
    std::cout << "Interrupted after step " << trainer.step() << ".";
    if (!options.checkpoint.empty()) {
      trainer.save(options.checkpoint, settings);
      std::cout << " Continue with the same command and --resume.";
    }
    std::cout << '\n';
    return examples::kInterrupted;
  }
  if (options.sample.bytes > 0) {
    const auto mode = examples::evaluation_mode(options.train.mode);
    std::cout << "\nA sample, written in "
              << (mode == te_int8::Mode::Inference ? "INT8" : "full precision") << ":\n"
              << printable(sample(model, device, options.sample, mode, options.train.recipe))
              << '\n';
  }
  return EXIT_SUCCESS;
}

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  const std::string text = load_text(options);
  const torch::Device device = examples::begin_training("train_text", options.device);
  const TextData data(text, options.model.context, device);
  if (!options.compare) {
    return train(options, data, text, device);
  }
  return examples::exit_code(
      compare(options, data, device), "Interrupted: there is no comparison.");
}

}  // namespace

}  // namespace train_text

int main(int argc, char** argv) {
  return examples::run_program("train_text", [&] { return train_text::run(argc, argv); });
}
