// The parts of examples/minilm that need its model: the tokenizer and the embeddings, against the numbers that
// the Python packages tokenizers and transformers give. Skipped where the set-up has not fetched the model.
#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "../examples/minilm/bert.h"
#include "../examples/minilm/compare.h"
#include "../examples/minilm/embedder.h"
#include "../examples/minilm/wordpiece.h"
#include "temporary_directory.h"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using te_int8_tests::TemporaryDirectory;
using Ids = std::vector<int64_t>;

namespace {

std::string model_folder() {
  if (!std::filesystem::exists(TE_INT8_DEFAULT_MINILM "/model.safetensors")) {
    SKIP("there is no model in " TE_INT8_DEFAULT_MINILM ": scripts/test.sh fetches it");
  }
  return TE_INT8_DEFAULT_MINILM;
}

minilm::BertConfig small_config() {
  return {
      .vocabulary = 20,
      .positions = 8,
      .token_types = 2,
      .layers = 2,
      .width = 8,
      .heads = 2,
      .inner = 16};
}

minilm::NamedTensors tensors_of(const minilm::Bert& model) {
  minilm::NamedTensors tensors;
  for (const auto& item : model->named_parameters()) {
    tensors[item.key()] = item.value().detach().clone();
  }
  return tensors;
}

}  // namespace

TEST_CASE("WordPiece gives the ids of BERT's own tokenizer", "[examples][minilm]") {
  const minilm::WordPiece tokenizer(model_folder() + "/vocab.txt");
  const auto expect = [&](const std::string& text, const Ids& ids) {
    INFO(text);
    CHECK(tokenizer.encode(text) == ids);
  };
  expect("", {101, 102});
  expect("  \t\n ", {101, 102});
  expect("Hello, world!", {101, 7592, 1010, 2088, 999, 102});
  expect(
      "Crème brûlée à l'ÉCOLE: $5.99 (naïve)",
      {101, 13675, 21382, 7987, 9307, 2063, 1037, 1048, 1005, 12431, 1024, 1002, 1019, 1012, 5585,
       1006, 15743, 1007, 102});
  expect("北京大学 is in China", {101, 1781, 1755, 1810, 1817, 2003, 1999, 2859, 102});
  expect("豈\U0002F800\U00020000x", {101, 100, 100, 100, 1060, 102});
  expect("I ❤️ pizza 🍕!!", {101, 1045, 100, 10733, 100, 999, 999, 102});
  expect(
      "unaffordability pneumonoultramicroscopicsilicovolcanoconiosis",
      {101,  14477, 4246,  8551,  8010, 1052,  2638, 2819, 17175, 11314, 6444, 2594,
       7352, 26461, 27572, 11261, 6767, 15472, 6761, 8663, 10735, 2483,  102});
  expect(
      "don't_stop @user #tag^2~`",
      {101, 2123, 1005, 1056, 1035, 2644, 1030, 5310, 1001, 6415, 1034, 1016, 1066, 1036, 102});
  expect(
      "한국어 かな ガギグ", {101, 1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008, 1651,
                             30193, 1700, 30227, 30228, 102});
  expect(
      "İstanbul ẞ Straße ΣΊΣΥΦΟΣ Kelvin\u212A", {101, 9960, 1096, 2358, 27807, 1173, 18199, 29733,
                                                 29735, 29736, 29730, 29733, 24810, 2243, 102});
  expect("नमस्ते दुनिया", {101, 1327, 29867, 29874, 29859, 1325, 29863, 29877, 29868, 29876, 102});
  expect("ﬁne ½ № ™ x²", {101, 1984, 2638, 1092, 1578, 1580, 1060, 10701, 102});
  expect(
      std::string("zero\u200Bwidth\u00ADsoft\0nul\uFFFD\abell\u00A0nbsp\u2028line", 43),
      {101, 5717, 9148, 11927, 7898, 15794, 11231, 20850, 5349, 1050, 5910, 2361, 2240, 102});
  // A word of more than 100 characters is unknown.
  CHECK(tokenizer.encode(std::string(100, 'a')).size() == 52);
  expect(std::string(101, 'a'), {101, 100, 102});
}

TEST_CASE("WordPiece takes any bytes, truncates and pads", "[examples][minilm]") {
  const minilm::WordPiece tokenizer(model_folder() + "/vocab.txt", /*max_tokens=*/5);
  CHECK(tokenizer.encode("the the the the the the") == Ids{101, 1996, 1996, 1996, 102});
  CHECK(tokenizer.encode("the\xFF\xC3 \xED\xA0\x80 \xF4\x90\x80\x80") == Ids{101, 1996, 102});
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      const std::string text = {static_cast<char>(first), static_cast<char>(second)};
      REQUIRE(tokenizer.encode(text).size() <= 4);
    }
  }
  const minilm::TokenBatch padded = tokenizer.batch({{101, 1996, 102}, {101, 102}});
  CHECK(torch::equal(padded.ids, torch::tensor({{101, 1996, 102}, {101, 102, 0}}, torch::kLong)));
  CHECK(torch::equal(padded.mask, torch::tensor({{true, true, true}, {true, true, false}})));
  CHECK_FALSE(tokenizer.batch({{101, 102}, {101, 102}}).mask.defined());
}

TEST_CASE("a vocabulary without the special tokens is refused", "[examples][minilm]") {
  const TemporaryDirectory directory;
  std::ofstream(directory / "vocab.txt") << "[PAD]\n[CLS]\nword\n";
  CHECK_THROWS_WITH(
      minilm::WordPiece(directory / "vocab.txt"),
      ContainsSubstring("expected a vocabulary with [SEP]"));
  CHECK_THROWS_WITH(minilm::WordPiece(directory / "none"), ContainsSubstring("no readable file"));
}

TEST_CASE("a vocabulary with a piece twice is refused", "[examples][minilm]") {
  const TemporaryDirectory directory;
  const auto path = directory / "vocab.txt";
  std::ofstream(path) << "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\na\n";
  CHECK_THROWS_WITH(
      minilm::WordPiece(path), ContainsSubstring("got 'a' on lines 5 and 7"));
}

TEST_CASE("a checkpoint is loaded whole or not at all", "[examples][minilm]") {
  minilm::Bert source(small_config());
  minilm::Bert model(small_config());
  minilm::NamedTensors tensors = tensors_of(source);
  SECTION("as it is, with what the encoder has no use for") {
    tensors["pooler.dense.weight"] = torch::ones({3});
    tensors["embeddings.position_ids"] = torch::arange(8);
    model->load(tensors, "file");
    const auto ids = torch::randint(20, {3, 5});
    CHECK(torch::equal(model->forward(ids), source->forward(ids)));
    CHECK_FALSE(model->parameters()[0].requires_grad());
  }
  SECTION("missing") {
    tensors.erase("encoder.layer.1.attention.self.key.bias");
    CHECK_THROWS_WITH(
        model->load(tensors, "file"),
        "file: expected a tensor 'encoder.layer.1.attention.self.key.bias', got none");
  }
  SECTION("unexpected") {
    tensors["encoder.layer.2.output.dense.bias"] = torch::ones({8});
    CHECK_THROWS_WITH(
        model->load(tensors, "file"),
        ContainsSubstring("got 'encoder.layer.2.output.dense.bias' as well"));
  }
  SECTION("of another shape") {
    tensors["embeddings.LayerNorm.bias"] = torch::ones({9});
    CHECK_THROWS_WITH(
        model->load(tensors, "file"),
        ContainsSubstring("'embeddings.LayerNorm.bias': expected floating point of shape [8]") &&
            ContainsSubstring("[9]"));
  }
}

TEST_CASE("padding changes nothing", "[examples][minilm]") {
  const torch::NoGradGuard no_grad;
  minilm::Bert model(small_config());
  const auto ids = torch::randint(20, {1, 5});
  const auto padded = torch::cat({ids, torch::zeros({1, 3}, torch::kLong)}, 1);
  const auto mask = torch::arange(8).lt(5).unsqueeze(0);
  CHECK(torch::allclose(model->embed(padded, mask), model->embed(ids), 1e-5, 1e-6));
  CHECK_THROWS_WITH(
      model->forward(torch::zeros({1, 9}, torch::kLong)), ContainsSubstring("at most 8 tokens"));
}

TEST_CASE(
    "minilm gives the published model's embeddings, and INT8 stays near", "[examples][minilm]") {
  minilm::Embedder embedder(model_folder(), torch::kCPU);
  const auto& texts = minilm::built_in_sentences();
  const minilm::Comparison both = minilm::compare(embedder, texts);
  REQUIRE(both.full.sizes() == std::vector<int64_t>{6, 384});

  const auto expect = [&](int64_t row, const std::string& text, const std::vector<double>& values) {
    REQUIRE(texts[static_cast<size_t>(row)] == text);
    for (size_t i = 0; i < values.size(); ++i) {
      CHECK_THAT(
          both.full[row][static_cast<int64_t>(i)].item<double>(), WithinAbs(values[i], 1e-4));
    }
  };
  expect(0, "The cat sleeps on the warm stove.", {0.0814962, 0.0242419, -0.0569929, 0.1017649});
  expect(4, "How do I bake bread without yeast?", {0.0328856, 0.0494432, -0.0569276, 0.0147640});

  CHECK(both.cosines().min().item<double>() >= 0.99);
  const auto caught =
      std::count_if(both.report.layers.begin(), both.report.layers.end(), [](const auto& layer) {
        return layer.action == "quantized" && layer.calls == 1 && layer.bias_fused;
      });
  CHECK(
      caught ==
      36);  // 6 layers of query, key, value, attention's output and two of the feed-forward part
  // Sentences in pairs that say the same: each one's nearest is the other of its pair, in INT8 too.
  auto similarities = both.int8.mm(both.int8.t());
  similarities.fill_diagonal_(-1);
  CHECK(torch::equal(similarities.argmax(1), torch::tensor({1, 0, 3, 2, 5, 4}, torch::kLong)));
}
