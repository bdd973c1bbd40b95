// The helpers that the examples share.
#include <torch/torch.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <fstream>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../examples/common/atomic_file.h"
#include "../examples/common/bf16_autocast.h"
#include "../examples/common/comparison.h"
#include "../examples/common/csv.h"
#include "../examples/common/schedule.h"
#include "../examples/common/text.h"
#include "../examples/common/training_report.h"
#include "../examples/common/training_run.h"
#include "printed_text.h"
#include "temporary_directory.h"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinRel;
using te_int8_tests::contents;
using te_int8_tests::PrintedText;
using te_int8_tests::TemporaryDirectory;

namespace {

// Of metrics that are one number.
struct NumberReport {
  std::string heading() const { return "heading"; }
  std::string line(int number) const { return "line " + std::to_string(number); }
  std::string csv_header() const { return "number"; }
  std::vector<std::string> csv_fields(int number) const { return {std::to_string(number)}; }
};

}  // namespace

TEST_CASE("an atomic write leaves the old file when it fails", "[examples]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  examples::write_text_atomically(path, "old");
  CHECK(contents(path) == "old");
  examples::write_text_atomically(path, "new");
  CHECK(contents(path) == "new");

  const auto fail_half_way = [](const std::string& temporary) {
    std::ofstream(temporary) << "half";
    throw std::runtime_error("disk full");
  };
  CHECK_THROWS_WITH(examples::write_atomically(path, fail_half_way), "disk full");
  CHECK(contents(path) == "new");
  CHECK(directory.file_count() == 1);  // no temporary file is left behind

  CHECK_THROWS_WITH(
      examples::write_text_atomically(directory / "missing/file", "text"),
      ContainsSubstring("missing/file"));
}

TEST_CASE("the learning rate warms up, peaks and ends at its floor", "[examples]") {
  const examples::WarmupCosine schedule = {.peak = 2.0, .warmup_steps = 4, .total_steps = 105};
  CHECK_THAT(schedule.at(0), WithinRel(0.5, 1e-12));
  CHECK_THAT(schedule.at(3), WithinRel(2.0, 1e-12));
  CHECK_THAT(schedule.at(4), WithinRel(2.0, 1e-12));
  CHECK_THAT(schedule.at(54), WithinRel(1.1, 1e-12));  // half way between the peak and the floor
  CHECK_THAT(schedule.at(104), WithinRel(0.2, 1e-12));
  CHECK_THAT(schedule.at(1000), WithinRel(0.2, 1e-12));
  for (int64_t step = 4; step < 104; ++step) {
    CHECK(schedule.at(step + 1) < schedule.at(step));
  }
  const examples::WarmupCosine one_step = {.peak = 3.0, .warmup_steps = 0, .total_steps = 1};
  CHECK_THAT(one_step.at(0), WithinRel(3.0, 1e-12));
}

TEST_CASE("a resumed CSV drops the rows that will be computed again", "[examples]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "metrics.csv";
  {
    examples::CsvWriter csv(path, "step,loss");
    csv.row({"10", "2.5"});
    csv.row({"20", "2.25"});
    csv.row({"30", "2"});
  }
  examples::CsvWriter::resume(path, "step,loss", 20).row({"30", "1"});
  CHECK(contents(path) == "step,loss\n10,2.5\n20,2.25\n30,1\n");
  CHECK_THROWS_WITH(
      examples::CsvWriter::resume(path, "step,other", 20),
      ContainsSubstring("expected the header"));
  examples::CsvWriter::resume(directory / "new.csv", "step", 5).row({"6"});
  CHECK(contents(directory / "new.csv") == "step\n6\n");
  CHECK_THROWS_WITH(examples::CsvWriter("/dev/full", "step"), ContainsSubstring("/dev/full"));
}

TEST_CASE("bf16 autocast ends with its scope", "[examples]") {
  const auto multiply = [] {
    return torch::mm(torch::ones({2, 2}), torch::ones({2, 2})).scalar_type();
  };
  {
    const examples::Bf16Autocast autocast(torch::kCPU, true);
    CHECK(multiply() == torch::kBFloat16);
    {
      const examples::Bf16Autocast off(torch::kCPU, false);
      CHECK(multiply() == torch::kFloat);
    }
    CHECK(multiply() == torch::kBFloat16);
  }
  CHECK(multiply() == torch::kFloat);
}

TEST_CASE("numbers are printed for people", "[examples]") {
  CHECK(examples::grouped(0) == "0");
  CHECK(examples::grouped(999) == "999");
  CHECK(examples::grouped(1234567) == "1,234,567");
  CHECK(examples::grouped(-123456) == "-123,456");
  CHECK(examples::clock_time(59.9) == "0:59");
  CHECK(examples::clock_time(3725) == "1:02:05");
  CHECK(examples::fixed(-0.00049, 3) == "-0.000");
}

TEST_CASE("a comparison's tables have each number in its place", "[examples]") {
  const std::vector<examples::Measure> measures = {
      {.quantity = "loss, nats", .difference = "difference, nats", .column = "val_loss"},
      {.quantity = "errors, %", .difference = "points", .column = "wer", .digits = 1}};
  const examples::Comparison result = {
      .full_full = {1.5, 20},
      .full_int8 = {1.51, 0},
      .recipe_full = {1.495, 0},
      .recipe_int8 = {1.496, 21.25}};
  const std::string table = examples::comparison_markdown(result, measures, 0, "QAT");
  CHECK(table.starts_with("| loss, nats | evaluated in full precision | evaluated in INT8 |\n"));
  CHECK_THAT(table, ContainsSubstring("| trained in full precision | 1.5000 | 1.5100 |"));
  CHECK_THAT(table, ContainsSubstring("| trained by QAT | 1.4950 | 1.4960 |"));
  CHECK_THAT(table, ContainsSubstring("| difference, nats | |"));
  CHECK_THAT(table, ContainsSubstring("minus full precision in full precision | -0.0040 |"));
  CHECK_THAT(
      table, ContainsSubstring("the same QAT weights, INT8 minus full precision | +0.0010 |"));
  CHECK_THAT(
      examples::comparison_markdown(result, measures, 1, "INT8 training"),
      ContainsSubstring(
          "| INT8 training in INT8, minus full precision in full precision | +1.2 |"));
  CHECK(
      examples::comparison_csv(result, measures, "QAT") ==
      "trained,evaluated,val_loss,wer\n"
      "full precision,full precision,1.500000,20.000\n"
      "full precision,INT8,1.510000,0.000\n"
      "QAT,full precision,1.495000,0.000\n"
      "QAT,INT8,1.496000,21.250\n");
}

TEST_CASE("a comparison trains twice and evaluates each model twice", "[examples]") {
  using te_int8::Mode;
  const TemporaryDirectory directory;
  const PrintedText printed;
  examples::ProgramOptions options;
  options.out = directory / "";
  const NumberReport report;
  const auto train = [](Mode mode, const auto& record) {
    record(mode == Mode::Off ? 1 : 2);
    return std::optional(mode);
  };
  auto pair = examples::train_both_ways<Mode>(options, report, train);
  REQUIRE(pair.has_value());
  CHECK(contents(directory / "curves.csv") == "number,run\n1,full precision\n2,QAT\n");
  CHECK_THAT(printed.text(), ContainsSubstring("Training: QAT\nheading\nline 2\n"));

  int evaluations = 0;
  const auto number = [](Mode trained, Mode evaluated) {
    return std::vector{10.0 * static_cast<int>(trained) + static_cast<int>(evaluated)};
  };
  const auto result = examples::evaluate_both_ways(*pair, [&](Mode trained, Mode mode) {
    ++evaluations;
    return number(trained, mode);
  });
  CHECK(result.full_full == number(Mode::Off, Mode::Off));
  CHECK(result.full_int8 == number(Mode::Off, Mode::Inference));
  CHECK(result.recipe_full == number(Mode::QAT, Mode::Off));
  CHECK(result.recipe_int8 == number(Mode::QAT, Mode::Inference));
  CHECK(evaluations == 4);

  const auto interrupted = [](Mode mode, const auto&) {
    return mode == Mode::Off ? std::optional(mode) : std::nullopt;
  };
  CHECK_FALSE(examples::train_both_ways<Mode>(options, report, interrupted).has_value());
}

TEST_CASE("a run shows its evaluations and keeps them where it is asked to", "[examples]") {
  struct TwoEvaluations {
    bool run(const std::function<void(int)>& on_metrics) const {
      on_metrics(1);
      on_metrics(2);
      return true;
    }
  } trainer;
  const TemporaryDirectory directory;
  examples::ProgramOptions options;
  const PrintedText printed;
  CHECK(examples::run_and_report(trainer, NumberReport(), options, "Two evaluations."));
  CHECK(printed.text() == "Two evaluations.\nRecipe: qat\n\nheading\nline 1\nline 2\n");
  CHECK(directory.file_count() == 0);
  options.csv = directory / "rows.csv";
  CHECK(examples::run_and_report(trainer, NumberReport(), options, ""));
  CHECK(contents(options.csv) == "number\n1\n2\n");
}

TEST_CASE("a report's columns stand below their headings", "[examples]") {
  using Metrics = examples::TrainingMetrics;
  const examples::TrainingReport<Metrics> report(
      "nats", {{"val loss", "nats", "val_loss", [](const Metrics&) { return 2.25; }},
               {"WER", "%", "wer", [](const Metrics&) { return 30; }, 1}});
  const Metrics metrics = {
      .step = 20,
      .items = 12345,
      .train_loss = 2.5,
      .learning_rate = 1e-3,
      .items_per_second = 6789,
      .seconds_left = 75};
  const std::string line = report.line(metrics);
  CHECK(
      line ==
      "      20      12,345      2.5000    2.2500      30.0  0.001000     6,789       1:15");
  const std::string heading = report.heading();
  CHECK(heading.substr(0, heading.find('\n')).size() == line.size());
  CHECK(report.csv_header() == "step,tokens,train_loss,val_loss,wer,lr,tokens_per_second,peak_mb");
  CHECK(
      report.csv_fields(metrics) ==
      std::vector<std::string>{"20", "12345", "2.5", "2.25", "30", "0.00100000", "6789", "0.0"});
}
