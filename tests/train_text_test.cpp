// The parts of examples/train_text: data, training that resumes, sample, comparison.
#include <torch/torch.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "../examples/common/checkpoint.h"
#include "../examples/train_text/sample.h"
#include "../examples/train_text/text_data.h"
#include "../examples/train_text/trainer.h"
#include "temporary_directory.h"

namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using te_int8_tests::TemporaryDirectory;

// Bytes with some structure, so that a model can learn from them.
std::string some_text(size_t size) {
  std::string text;
  for (size_t i = 0; text.size() < size; ++i) {
    text += "verse " + std::to_string(i * i % 997) + ", ";
  }
  return text.substr(0, size);
}

constexpr int64_t kContext = 16;
const train_text::GptConfig kTinyGpt = {
    .layers = 2, .width = 32, .heads = 2, .context = kContext, .dropout = 0.1, .tie_head = true};

train_text::TrainOptions tiny_training() {
  train_text::TrainOptions options;
  options.steps = 12;
  options.batch = 4;
  options.schedule = {.peak = 1e-2, .warmup_steps = 2, .total_steps = 12};
  options.seed = 7;
  options.eval_every = 5;
  options.eval_windows = 6;
  options.mode = te_int8::Mode::QAT;
  return options;
}

train_text::Gpt tiny_gpt(uint64_t seed) {
  torch::manual_seed(seed);
  return train_text::Gpt(kTinyGpt);
}

}  // namespace

TEST_CASE("training batches depend on the seed and the step alone", "[examples]") {
  const std::string text = some_text(5000);
  const train_text::TextData data(text, kContext, torch::kCPU);
  const train_text::TextData same(text, kContext, torch::kCPU);
  const auto batch = data.train_batch(1, 3, 8);
  torch::rand({10});  // LibTorch's generator plays no part
  CHECK(torch::equal(batch.tokens, same.train_batch(1, 3, 8).tokens));
  CHECK_FALSE(torch::equal(batch.tokens, data.train_batch(1, 4, 8).tokens));
  CHECK_FALSE(torch::equal(batch.tokens, data.train_batch(2, 3, 8).tokens));

  REQUIRE(batch.tokens.sizes() == torch::IntArrayRef({8, kContext}));
  CHECK(torch::equal(batch.tokens.slice(1, 1), batch.targets.slice(1, 0, kContext - 1)));
  for (int64_t row = 0; row < 8; ++row) {  // each window is a piece of the training part
    std::string window;
    for (int64_t i = 0; i < kContext; ++i) {
      window += static_cast<char>(batch.tokens[row][i].item<int64_t>());
    }
    CHECK(
        text.substr(0, static_cast<size_t>(data.train_bytes())).find(window) != std::string::npos);
  }
}

TEST_CASE("validation windows are fixed and do not overlap", "[examples]") {
  std::string text(10000, 'a');
  for (size_t i = 9000; i < text.size(); ++i) {
    text[i] = static_cast<char>('b' + i % 7);
  }
  const train_text::TextData data(text, kContext, torch::kCPU);
  CHECK(data.train_bytes() == 9000);
  CHECK(data.validation_bytes() == 1000);
  CHECK(data.validation_windows() == 62);
  const auto batches = data.validation_batches(10, 4);
  REQUIRE(batches.size() == 3);
  CHECK(batches[2].tokens.size(0) == 2);
  for (const auto& batch : batches) {
    CHECK((batch.tokens != 'a').all().item<bool>());
  }
  // Asked for more than there are, it gives each window once: together the text without its end.
  std::vector<torch::Tensor> all;
  for (const auto& batch : data.validation_batches(1000, 16)) {
    all.push_back(batch.tokens.reshape({-1}));
  }
  const torch::Tensor bytes = torch::cat(all);
  REQUIRE(bytes.numel() == 62 * kContext);
  for (int64_t i = 0; i < bytes.numel(); ++i) {
    REQUIRE(bytes[i].item<int64_t>() == text[static_cast<size_t>(9000 + i)]);
  }
}

TEST_CASE("the unigram loss is that of byte frequencies", "[examples]") {
  std::string text;
  for (int i = 0; i < 50000; ++i) {
    text += i % 4 == 0 ? 'a' : 'b';
  }
  const train_text::TextData data(text, kContext, torch::kCPU);
  const double entropy = -(0.25 * std::log(0.25) + 0.75 * std::log(0.75));
  CHECK_THAT(data.unigram_loss(), WithinAbs(entropy, 0.01));  // 0.01: one added to every count
}

TEST_CASE("a text that cannot be used is an error that says why", "[examples]") {
  const TemporaryDirectory directory;
  CHECK_THROWS_WITH(train_text::read_text(directory / "none"), ContainsSubstring("No such file"));
  CHECK_THROWS_WITH(train_text::read_text("/tmp"), ContainsSubstring("directory"));
  std::ofstream(directory / "empty");
  CHECK_THROWS_WITH(train_text::read_text(directory / "empty"), ContainsSubstring("empty"));
  CHECK_THROWS_WITH(
      train_text::TextData("short", kContext, torch::kCPU), ContainsSubstring("too short"));
  std::ofstream(directory / "bytes", std::ios::binary) << std::string("a\0\xff\n", 4);
  CHECK(train_text::read_text(directory / "bytes") == std::string("a\0\xff\n", 4));
}

TEST_CASE("a run that stops and resumes ends with the same bits", "[examples]") {
  const TemporaryDirectory directory;
  const std::string checkpoint = directory / "checkpoint";
  const examples::Settings settings = {{"--steps", "12"}};
  const train_text::TextData data(some_text(5000), kContext, torch::kCPU);
  const auto options = tiny_training();

  std::vector<train_text::Metrics> at_once;
  train_text::Gpt whole = tiny_gpt(1);
  {
    train_text::Trainer trainer(whole, data, options, torch::kCPU);
    // The checkpoint is of step 5: dropout's generator has moved by then.
    CHECK(trainer.run([&](const train_text::Metrics& metrics) {
      at_once.push_back(metrics);
      if (metrics.step == 5) {
        trainer.save(checkpoint, settings);
      }
    }));
  }
  REQUIRE(at_once.size() == 3);
  CHECK(at_once.back().train_loss < at_once.front().train_loss);

  std::vector<train_text::Metrics> resumed;
  train_text::Gpt continued = tiny_gpt(2);  // other weights and another generator: all is loaded
  train_text::Trainer trainer(continued, data, options, torch::kCPU);
  trainer.load(checkpoint, settings);
  CHECK(trainer.step() == 5);
  CHECK(trainer.run([&](const train_text::Metrics& metrics) { resumed.push_back(metrics); }));
  REQUIRE(resumed.size() == 2);
  for (size_t i = 0; i < resumed.size(); ++i) {
    CHECK(resumed[i].step == at_once[i + 1].step);
    CHECK(resumed[i].train_loss == at_once[i + 1].train_loss);
    CHECK(resumed[i].validation_loss == at_once[i + 1].validation_loss);
  }
  const auto expected = whole->named_parameters();
  for (const auto& item : continued->named_parameters()) {
    CHECK(torch::equal(item.value(), expected[item.key()]));
  }
}

TEST_CASE("a checkpoint of another run, or no checkpoint, is refused", "[examples]") {
  const TemporaryDirectory directory;
  const std::string checkpoint = directory / "checkpoint";
  const train_text::TextData data(some_text(5000), kContext, torch::kCPU);
  train_text::Trainer trainer(tiny_gpt(1), data, tiny_training(), torch::kCPU);
  trainer.save(checkpoint, {{"--lr", "0.1"}, {"--seed", "1"}});
  CHECK_THROWS_WITH(
      trainer.load(checkpoint, {{"--lr", "0.1"}, {"--seed", "2"}}),
      ContainsSubstring("--seed = 1, this run has 2"));
  std::ofstream(directory / "garbage") << "not a checkpoint";
  CHECK_THROWS_WITH(
      trainer.load(directory / "garbage", {}), ContainsSubstring("cannot resume from"));
}

TEST_CASE("a sample depends on its seed alone and may outgrow the context", "[examples]") {
  train_text::Gpt model = tiny_gpt(1);
  const train_text::SampleOptions options = {.prompt = "in", .bytes = 2 * kContext, .seed = 3};
  const auto write = [&] {
    return train_text::sample(model, torch::kCPU, options, te_int8::Mode::Inference, {});
  };
  const std::string text = write();
  CHECK(text.size() == 2 + 2 * kContext);
  CHECK(text.starts_with("in"));
  torch::rand({10});
  CHECK(write() == text);
}
