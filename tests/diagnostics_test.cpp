// Diagnostics: what they say is true, and saying it changes nothing.
#include <fstream>
#include <system_error>

#include "guard_support.h"
#include "temporary_directory.h"

using namespace te_int8_test;
using te_int8_tests::TemporaryDirectory;
using Catch::Matchers::WithinAbs, Catch::Matchers::WithinRel;
using te_int8::Diagnostics;

namespace {

struct Line {
  std::string step, layer, tensor, sqnr_db, zero_codes, cosine;
};

std::vector<Line> read(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  REQUIRE(std::getline(file, text));
  CHECK(text == "step,layer,tensor,sqnr_db,zero_codes,cosine");
  std::vector<Line> lines;
  while (std::getline(file, text)) {
    std::istringstream fields(text);
    Line line;
    for (auto* field : {&line.step, &line.layer, &line.tensor, &line.sqnr_db, &line.zero_codes, &line.cosine}) {
      std::getline(fields, *field, ',');
    }
    lines.push_back(line);
  }
  return lines;
}

const Line& of(const std::vector<Line>& lines, const std::string& layer, const std::string& tensor) {
  const auto found = std::ranges::find_if(
      lines, [&](const Line& line) { return line.layer == layer && line.tensor == tensor; });
  REQUIRE(found != lines.end());
  return *found;
}

double sqnr_of(const Tensor& x) {
  const auto [codes, scales] = te_int8::ops::quantize_rows(x);
  const auto values = x.to(at::kDouble), noise = values - te_int8::ops::dequantize(codes, scales).to(at::kDouble);
  return 10 * std::log10((values.square().sum() / noise.square().sum()).item<double>());
}

}  // namespace

TEST_CASE("diagnostics say what codes do to x, weights and gradients", "[guard][diagnostics]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "diagnostics.csv";
  torch::manual_seed(301);
  Mlp model(32);
  auto x = torch::randn({20, 32});
  x.index_put_({torch::indexing::Slice(0, 5)}, 0);  // rows of zeros have codes 0
  {
    Diagnostics diagnostics(path);
    const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training());
    {
      const auto measurement = diagnostics.measure(7);
      model->forward(x).sum().backward();
    }
    model->forward(x).sum().backward();  // nobody measures
  }
  const auto lines = read(path);
  CHECK(lines.size() == 3 * 6 - 2);  // the first layer has no dx, nor codes for it
  for (const auto& line : lines) CHECK(line.step == "7");
  const torch::NoGradGuard no_grad;
  CHECK_THAT(std::stod(of(lines, "fc1", "x").sqnr_db), WithinAbs(sqnr_of(x), 0.01));
  CHECK_THAT(std::stod(of(lines, "fc1", "weight").sqnr_db), WithinAbs(sqnr_of(model->fc1->weight), 0.01));
  const double zeros = std::get<0>(te_int8::ops::quantize_rows(x)).eq(0).to(at::kFloat).mean().item<double>();
  CHECK(zeros >= 0.25);
  CHECK_THAT(std::stod(of(lines, "fc1", "x").zero_codes), WithinRel(zeros, 1e-4));
  for (const std::string layer : {"fc1", "fc2", "head"}) {
    CHECK(std::stod(of(lines, layer, "dweight").cosine) > 0.99);
    CHECK(std::stod(of(lines, layer, "dweight").cosine) < 1);
    CHECK(of(lines, layer, "dweight").sqnr_db.empty());
    CHECK(std::stod(of(lines, layer, "dy_columns").sqnr_db) > 20);
  }
  CHECK(std::stod(of(lines, "head", "dx").cosine) > 0.99);
}

TEST_CASE("a layer whose backward is exact has no codes of dy", "[guard][diagnostics]") {
  const TemporaryDirectory directory;
  Diagnostics diagnostics(directory / "diagnostics.csv");
  OneLayer model;
  const AutocastGuard guard(model, Mode::QAT);
  {
    const auto measurement = diagnostics.measure(0);
    model->forward(torch::randn({3, 8})).sum().backward();
    const torch::NoGradGuard no_grad;
    model->forward(torch::randn({2, 3, 8}));
  }
  const auto lines = read(directory / "diagnostics.csv");
  REQUIRE(lines.size() == 5);  // x, weight, dweight; x, weight
  CHECK(lines[2].tensor == "dweight");
}

TEST_CASE("measuring changes no result", "[guard][diagnostics]") {
  const TemporaryDirectory directory;
  Diagnostics diagnostics(directory / "diagnostics.csv");
  torch::manual_seed(302);
  Mlp model(32);
  const auto x = torch::randn({2, 20, 32});
  const AutocastGuard guard(model, Mode::QAT, Recipe::int8_training());
  const auto step = [&] {
    model->zero_grad();
    const auto leaf = x.clone().requires_grad_();
    auto y = model->forward(leaf);
    y.square().sum().backward();
    std::vector<Tensor> results{y.detach(), leaf.grad()};
    for (const auto& parameter : model->parameters()) results.push_back(parameter.grad());
    return results;
  };
  const auto expected = step();
  const auto measured = [&] {
    const auto measurement = diagnostics.measure(0);
    return step();
  }();
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(same(measured[i], expected[i]));
}

TEST_CASE("two measurements at once, and files that cannot be written, are errors", "[guard][diagnostics]") {
  const TemporaryDirectory directory;
  Diagnostics diagnostics(directory / "diagnostics.csv");
  {
    const auto measurement = diagnostics.measure(0);
    CHECK_THAT(
        error_of([&] { static_cast<void>(diagnostics.measure(1)); }),
        Catch::Matchers::ContainsSubstring("te_int8::Diagnostics::measure: expected no other measurement"));
  }
  static_cast<void>(diagnostics.measure(1));
  CHECK_THROWS_AS(Diagnostics(directory / "missing/diagnostics.csv"), std::system_error);
  CHECK_THROWS_AS(Diagnostics("/dev/full"), std::system_error);
}
