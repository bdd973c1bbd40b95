// examples/fashion: models, training, comparison.
#include <torch/torch.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>
#include <vector>

#include "../examples/common/parameters.h"
#include "../examples/fashion/compare.h"
#include "../examples/fashion/trainer.h"
#include "printed_text.h"
#include "striped_images.h"
#include "temporary_directory.h"

namespace {

using Catch::Matchers::ContainsSubstring;
using te_int8_tests::contents;
using te_int8_tests::PrintedText;
using te_int8_tests::striped_images;
using te_int8_tests::TemporaryDirectory;

fashion::Options tiny_comparison(const std::string& model) {
  fashion::Options options;
  options.model = model;
  options.train_images = 40;
  options.train = {.epochs = 1, .batch = 20, .learning_rate = 2e-3, .seed = 5};
  return options;
}

}  // namespace

TEST_CASE("the classifiers give a logit for each class", "[examples]") {
  struct Case {
    std::string model, size;
    int64_t least, most;  // parameters
  };
  const auto [model, size, least, most] = GENERATE(
      Case{"resnet", "small", 50'000, 100'000}, Case{"resnet", "large", 300'000, 3'000'000},
      Case{"vit", "small", 100'000, 200'000}, Case{"vit", "large", 1'000'000, 2'000'000});
  CAPTURE(model, size);
  const auto classifier = fashion::make_classifier(model, size);
  CHECK(classifier->forward(torch::randn({3, 1, 28, 28})).sizes() == torch::IntArrayRef({3, 10}));
  const int64_t parameters = examples::parameter_count(*classifier);
  CHECK(parameters >= least);
  CHECK(parameters <= most);
}

TEST_CASE("a scope catches every convolution and Linear of the classifiers", "[examples]") {
  const std::string model = GENERATE("resnet", "vit");
  const std::string size = GENERATE("small", "large");
  const auto mode = GENERATE(te_int8::Mode::QAT, te_int8::Mode::Inference);
  CAPTURE(model, size, mode);
  const auto classifier = fashion::make_classifier(model, size);
  size_t weights = 0;  // but those of norms
  for (const auto& item : classifier->named_parameters()) {
    weights += item.value().dim() > 1 && item.key().ends_with("weight");
  }
  const auto x = torch::randn({2, 1, 28, 28});
  const torch::AutoGradMode grad(mode == te_int8::Mode::QAT);
  const te_int8::AutocastGuard guard(classifier, mode);
  classifier->forward(x);
  size_t quantized = 0;
  for (const auto& layer : guard.report().layers) {
    CAPTURE(layer.name, layer.type, layer.reason);
    const bool is_norm = layer.type.find("Norm") != std::string::npos;
    const bool is_root = layer.name.empty();  // the ViT's class token and positions
    CHECK((layer.action == "quantized") == !(is_norm || is_root));
    CHECK(layer.calls == (layer.action == "quantized"));
    quantized += layer.action == "quantized";
  }
  CHECK(quantized == weights);
}

TEST_CASE("classifiers learn in full precision and by QAT", "[examples]") {
  const std::string model = GENERATE("resnet", "vit");
  const auto mode = GENERATE(te_int8::Mode::Off, te_int8::Mode::QAT);
  CAPTURE(model, mode);
  torch::manual_seed(1);
  const fashion::Dataset data = striped_images(100);
  const auto test = fashion::batches(data, 50);
  const auto options = tiny_comparison(model);
  const auto classifier = fashion::seeded_classifier(options, torch::kCPU);
  const fashion::TrainOptions training = {
      .epochs = 4, .batch = 20, .learning_rate = 2e-3, .label_smoothing = 0.1, .mode = mode};
  std::vector<fashion::Metrics> metrics;
  fashion::Trainer trainer(classifier, data, test, training);
  CHECK(trainer.run([&](const fashion::Metrics& of_epoch) { metrics.push_back(of_epoch); }));
  REQUIRE(metrics.size() == 4);
  CHECK(metrics.back().epoch == 4);
  CHECK(metrics.back().train_loss < metrics.front().train_loss);
  CHECK(metrics.back().test_accuracy >= 0);
  CHECK(metrics.back().test_accuracy <= 100);
}

TEST_CASE("an evaluation leaves a classifier as it was", "[examples]") {
  const auto options = tiny_comparison("resnet");
  const auto classifier = fashion::seeded_classifier(options, torch::kCPU);
  const auto untouched = fashion::seeded_classifier(options, torch::kCPU);
  const auto test = fashion::batches(striped_images(10), 5);
  const auto mode = GENERATE(te_int8::Mode::Off, te_int8::Mode::Inference);
  fashion::accuracy(*classifier, test, /*bf16=*/false, mode);
  CHECK(fashion::scope_report(*classifier, test.front()).layers.size() > 10);
  CHECK(classifier->is_training());
  const auto expected = untouched->named_buffers();
  for (const auto& item : classifier->named_buffers()) {
    CHECK(torch::equal(item.value(), expected[item.key()]));
  }
}

TEST_CASE("accuracy counts the images whose class is right", "[examples]") {
  // Says the class whose number is the first pixel's.
  struct FirstPixel : fashion::Classifier {
    torch::Tensor forward(const torch::Tensor& images) override {
      return torch::one_hot(images.flatten(1).select(1, 0).to(torch::kLong), 10).to(torch::kFloat);
    }
  } model;
  const auto images = torch::arange(8).to(torch::kFloat).view({8, 1, 1, 1}).expand({8, 1, 28, 28});
  const auto labels = torch::tensor({0, 1, 2, 3, 4, 5, 0, 0});
  const std::vector<fashion::Batch> test = {
      {images.slice(0, 0, 5), labels.slice(0, 0, 5)}, {images.slice(0, 5), labels.slice(0, 5)}};
  CHECK(fashion::accuracy(model, test, /*bf16=*/false, te_int8::Mode::Off) == 75.0);
}

TEST_CASE("a comparison begins with equal weights and writes its tables", "[examples]") {
  auto options = tiny_comparison(GENERATE("resnet", "vit"));
  CAPTURE(options.model);
  const TemporaryDirectory directory;
  options.out = directory / "";
  options.command_line = "fashion --compare";
  torch::manual_seed(2);
  const fashion::Dataset data = striped_images(40);
  const auto test = fashion::batches(data, 20);
  const PrintedText printed;
  REQUIRE(fashion::compare(options, data, test, torch::kCPU));
  CHECK_THAT(printed.text(), ContainsSubstring("Training: QAT"));
  CHECK_THAT(contents(directory / "compare.md"), ContainsSubstring("| trained by QAT | "));
  CHECK_THAT(contents(directory / "compare.md"), ContainsSubstring("Command: `fashion --compare`"));
  const std::string csv = contents(directory / "compare.csv");
  CHECK(csv.starts_with("trained,evaluated,test_accuracy\nfull precision,full precision,"));
  CHECK_THAT(csv, ContainsSubstring("\nQAT,INT8,"));
  const std::string curves = contents(directory / "curves.csv");
  CHECK_THAT(curves, ContainsSubstring(",full precision\n") && ContainsSubstring(",QAT\n"));
  CHECK(directory.file_count() == 3);

  const auto first = fashion::seeded_classifier(options, torch::kCPU);
  const auto second = fashion::seeded_classifier(options, torch::kCPU);
  const auto expected = first->named_parameters();
  for (const auto& item : second->named_parameters()) {
    CHECK(torch::equal(item.value(), expected[item.key()]));
  }
}
