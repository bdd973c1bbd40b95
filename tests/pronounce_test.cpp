// The model of examples/pronounce: masks, decoding, what a scope catches of it, training.
#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <string>
#include <vector>

#include "../examples/common/evaluation_scope.h"
#include "../examples/pronounce/greedy.h"
#include "../examples/pronounce/trainer.h"
#include "pronounce_words.h"

namespace {

using pronounce::Pronunciation;

const pronounce::PronouncerConfig kTinyPronouncer = {
    .layers = 2, .width = 32, .heads = 2, .dropout = 0};

pronounce::Pronouncer tiny_pronouncer() {
  torch::manual_seed(1);
  return pronounce::Pronouncer(kTinyPronouncer);
}

int64_t calls_of_layer(const te_int8::Report& report, const std::string& name) {
  const auto found = std::find_if(
      report.layers.begin(), report.layers.end(),
      [&](const te_int8::LayerReport& layer) { return layer.name == name; });
  return found == report.layers.end() ? -1 : found->calls;
}

}  // namespace

TEST_CASE("what fills a word up changes nothing of it", "[examples]") {
  const auto mode = GENERATE(te_int8::Mode::Off, te_int8::Mode::Inference);
  CAPTURE(mode == te_int8::Mode::Off);
  auto model = tiny_pronouncer();
  const examples::EvaluationScope evaluation(*model);
  const pronounce::WordTable table(
      {{"cat", {23, 1, 32}}, {"o'clock", {2, 23, 24, 0, 23}}, {"i", {5}}}, /*unit=*/1, torch::kCPU);
  const te_int8::AutocastGuard guard(*model, mode);
  const auto logits = [&](const pronounce::WordBatch& batch) {
    return model->logits(model->decode(model->encode(batch.letters), batch.inputs));
  };
  const auto together = table.batch({0, 1, 2});
  const auto padded = logits(together);
  for (int64_t word = 0; word < 3; ++word) {
    const auto alone = logits(table.batch({word}));
    const auto same = padded.narrow(0, 0, alone.size(0)).select(1, word);
    // What differs in its last bit may have another code.
    const double tolerance = mode == te_int8::Mode::Off ? 1e-5 : 0.02;
    CHECK((alone.squeeze(1) - same).abs().max().item<double>() < tolerance);
  }
  CHECK(
      pronounce::pronounce(model, together.letters, 8) ==
      pronounce::pronounce(model, together.letters, 1));
}

TEST_CASE("no phoneme sees a later one", "[examples]") {
  auto model = tiny_pronouncer();
  const examples::EvaluationScope evaluation(*model);
  const auto memory = model->encode(pronounce::letters_tensor({"cat"}, 1, torch::kCPU));
  auto phonemes = torch::tensor({{pronounce::kStart, int64_t{23}, int64_t{1}}});
  const auto before = model->decode(memory, phonemes);
  phonemes[0][2] = 30;
  const auto after = model->decode(memory, phonemes);
  CHECK(torch::equal(before.narrow(0, 0, 2), after.narrow(0, 0, 2)));
  CHECK_FALSE(torch::equal(before[2], after[2]));
}

TEST_CASE("decoding stops at the end mark, or where no word may be longer", "[examples]") {
  auto model = tiny_pronouncer();
  const examples::EvaluationScope evaluation(*model);
  const auto letters = pronounce::letters_tensor({"cat", "mouse"}, 1, torch::kCPU);
  const auto bias = model->named_parameters()["head.bias"];
  const te_int8::AutocastGuard guard(*model, te_int8::Mode::Inference);
  bias[pronounce::kEnd] = 100;
  for (const Pronunciation& said : pronounce::pronounce(model, letters, 1)) {
    CHECK(said.empty());
  }
  CHECK(calls_of_layer(guard.report(), "head") == 1);
  bias[7] = 200;
  for (const Pronunciation& said : pronounce::pronounce(model, letters, 1)) {
    CHECK(said == Pronunciation(pronounce::kLongest - 1, 7));
  }
}

TEST_CASE("the scope catches every matmul of the model by a weight", "[examples]") {
  const bool training = GENERATE(true, false);
  CAPTURE(training);
  auto model = tiny_pronouncer();
  model->train(training);
  const torch::AutoGradMode with_gradients(training);
  const pronounce::WordTable table({{"cat", {23, 1, 32}}, {"i", {5}}}, 1, torch::kCPU);
  const auto batch = table.batch({0, 1});
  const auto full = model->loss(batch, 0);
  torch::Tensor int8;
  te_int8::Report report;
  {
    const te_int8::AutocastGuard guard(
        *model, training ? te_int8::Mode::QAT : te_int8::Mode::Inference);
    int8 = model->loss(batch, 0);
    report = guard.report();
  }
  const double difference = (full - int8).abs().item<double>();
  CHECK(difference > 0);
  CHECK(difference < 0.05);
  int64_t quantized = 0;
  for (const auto& layer : report.layers) {
    quantized += layer.action == "quantized" ? 1 : 0;
  }
  CHECK(quantized == 2 * 4 + 2 * 6 + 1);
  for (const std::string i : {"0", "1"}) {
    const std::string encoder = "transformer.encoder.layers." + i;
    const std::string decoder = "transformer.decoder.layers." + i;
    for (const std::string& layer : {encoder, decoder}) {
      for (const auto* name :
           {".self_attn.in_proj", ".self_attn.out_proj", ".linear1", ".linear2"}) {
        CAPTURE(layer, name);
        CHECK(calls_of_layer(report, layer + name) == 1);
      }
    }
    // The queries are of the decoder, the keys and values of the encoder.
    CHECK(calls_of_layer(report, decoder + ".multihead_attn.in_proj") == 2);
    CHECK(calls_of_layer(report, decoder + ".multihead_attn.out_proj") == 1);
  }
  CHECK(calls_of_layer(report, "head") == 1);
}

TEST_CASE("a tiny model learns to read backwards, in full precision and by QAT", "[examples]") {
  const auto mode = GENERATE(te_int8::Mode::Off, te_int8::Mode::QAT);
  CAPTURE(mode == te_int8::Mode::QAT);
  pronounce::TrainOptions options;
  options.steps = 200;
  options.batch = 64;
  options.schedule = {.peak = 5e-3, .warmup_steps = 20, .total_steps = 200};
  options.eval_every = 20;
  options.eval_words = 100;
  options.mode = mode;
  const pronounce::Split words = pronounce::split(te_int8_tests::backward_words(1500));
  auto model = tiny_pronouncer();
  pronounce::Trainer trainer(model, words, options, torch::kCPU);
  std::vector<pronounce::Metrics> all;
  CHECK(trainer.run([&](const pronounce::Metrics& metrics) { all.push_back(metrics); }));
  REQUIRE(all.size() == 10);
  CHECK(all.back().step == 200);
  CHECK(all.back().train_loss < 0.6 * all.front().train_loss);
  CHECK(all.back().held_out.loss < 0.5 * all.front().held_out.loss);
  CHECK(all.back().held_out.phoneme_error_rate < 0.2);
  CHECK(all.back().held_out.word_error_rate < all.front().held_out.word_error_rate);
}
