// The data of examples/pronounce: dictionary, batches, error rates, the table of words.
#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "../examples/pronounce/error_rates.h"
#include "../examples/pronounce/word_batches.h"
#include "../examples/pronounce/words.h"
#include "pronounce_words.h"
#include "temporary_directory.h"

namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using pronounce::Entry;
using te_int8_tests::backward_words;
using te_int8_tests::TemporaryDirectory;

pronounce::Dictionary dictionary_of(const std::string& text) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "some.dict") << text;
  return pronounce::read_dictionary(directory / "some.dict");
}

}  // namespace

TEST_CASE("a dictionary's alternatives come together, without stress and comments", "[examples]") {
  const auto dictionary = dictionary_of(
      "record R AH0 K AO1 R D\n"
      "record's R EH1 K ER0 D Z # a possessive\n"
      "record(2) R EH1 K ER0 D\n"
      "record(3) R AH1 K AO0 R D\n"  // the first one, but for its stress
      "a.m. EY1 EH1 M\n"
      "x-ray EH1 K S R EY2\n");
  CHECK(dictionary.skipped == 2);
  REQUIRE(dictionary.entries.size() == 2);
  CHECK(dictionary.entries[0].word == "record");
  REQUIRE(dictionary.entries[0].pronunciations.size() == 2);
  CHECK(pronounce::written(dictionary.entries[0].pronunciations[0]) == "R AH K AO R D");
  CHECK(pronounce::written(dictionary.entries[0].pronunciations[1]) == "R EH K ER D");
  CHECK(dictionary.entries[1].word == "record's");
  CHECK(pronounce::letters_of("a'z") == std::vector<int64_t>{0, pronounce::kApostrophe, 25});
}

TEST_CASE("a dictionary that is none is an error with the line's number", "[examples]") {
  const auto [line, message] = GENERATE(table<std::string, std::string>({
      {"cat", "expected 1 to 31 phonemes, got 0"},
      {"", "expected a word"},
      {" K AE T", "expected a word"},
      {"cat K AE3 T", "got 'AE3'"},
      {"cat K1 AE T", "got 'K1'"},
      {"cat k ae t", "got 'k'"},
      {"cat(x) K AE T", "expected a word, like record or record(2), got 'cat(x) K AE T'"},
      {"(2) K AE T", "expected a word"},
      {"dog D AO G", "expected pronunciation 2 of dog, got 1"},
      {"dog(3) D AO G", "expected pronunciation 2 of dog, got 3"},
      {"cat(2) K AE T", "expected pronunciation 1 of cat, got 2"},
      {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa AA", "expected at most 32 letters, got 33"},
  }));
  CAPTURE(line);
  const auto read = [&text = line] { dictionary_of("dog D AA G\n" + text + "\n"); };
  CHECK_THROWS_WITH(read(), ContainsSubstring("some.dict:2: ") && ContainsSubstring(message));
}

TEST_CASE("a dictionary that cannot be read is an error that names it", "[examples]") {
  CHECK_THROWS_WITH(
      pronounce::read_dictionary("/nowhere/some.dict"),
      ContainsSubstring("/nowhere/some.dict: No such file"));
  CHECK_THROWS_WITH(pronounce::read_dictionary("/tmp"), ContainsSubstring("directory"));
  CHECK_THROWS_WITH(dictionary_of(""), ContainsSubstring("got none"));
  CHECK_THROWS_WITH(dictionary_of("x-ray EH K S R EY\n"), ContainsSubstring("got none"));
}

TEST_CASE("a word alone decides whether it is held out", "[examples]") {
  const auto entries = backward_words(2000);
  const auto words_of = [](const std::vector<Entry>& part) {
    std::set<std::string> words;
    for (const Entry& entry : part) {
      words.insert(entry.word);
    }
    return words;
  };
  const auto all = pronounce::split(entries);
  const auto training = words_of(all.training), held_out = words_of(all.held_out);
  CHECK(training.size() + held_out.size() == 2000);
  CHECK(held_out.size() > 140);
  CHECK(held_out.size() < 260);
  const bool disjoint = std::none_of(
      held_out.begin(), held_out.end(), [&](const auto& word) { return training.contains(word); });
  CHECK(disjoint);
  const auto few = pronounce::split({entries.rbegin(), entries.rbegin() + 500});
  CHECK(few.training.size() + few.held_out.size() == 500);
  for (const Entry& entry : few.held_out) {
    CHECK(held_out.contains(entry.word));
  }
}

TEST_CASE("edit distances are those of hand-made cases", "[examples]") {
  using pronounce::edit_distance;
  CHECK(edit_distance({}, {}) == 0);
  CHECK(edit_distance({1, 2, 3}, {1, 2, 3}) == 0);
  CHECK(edit_distance({}, {1, 2}) == 2);
  CHECK(edit_distance({1, 2}, {}) == 2);
  CHECK(edit_distance({1, 2, 3}, {1, 9, 3}) == 1);
  CHECK(edit_distance({1, 2, 3}, {2, 3}) == 1);
  CHECK(edit_distance({2, 3}, {1, 2, 3}) == 1);
  CHECK(edit_distance({1, 2}, {2, 1}) == 2);
  CHECK(edit_distance({1, 2, 3, 4}, {2, 3, 4, 5}) == 2);
  // kitten, sitting
  CHECK(edit_distance({1, 2, 3, 3, 4, 5}, {6, 2, 3, 3, 2, 5, 7}) == 3);
}

TEST_CASE("error rates take the reference that is nearest", "[examples]") {
  pronounce::ErrorRates errors;
  errors.add({1, 2, 3}, {{7, 8, 9, 10}, {1, 2, 3}});
  CHECK(errors.of_phonemes() == 0);
  CHECK(errors.of_words() == 0);
  errors.add({1, 2, 3, 4}, {{5, 6, 7}, {1, 2, 3, 9, 9}});  // two edits to five phonemes
  CHECK_THAT(errors.of_phonemes(), WithinAbs(2.0 / 8, 1e-12));
  CHECK_THAT(errors.of_words(), WithinAbs(1.0 / 2, 1e-12));
  CHECK_THROWS_WITH(errors.add({1}, {}), ContainsSubstring("at least one reference"));
}

TEST_CASE("a batch's words are filled up to whole units", "[examples]") {
  const pronounce::WordTable table({{"ab", {5}}, {"abcde", {5, 6, 7}}}, /*unit=*/4, torch::kCPU);
  const auto one = table.batch({0});
  CHECK(one.tokens == 4);  // two letters, a phoneme, an end mark
  using pronounce::kEnd, pronounce::kNoLetter, pronounce::kNoPhoneme, pronounce::kStart;
  CHECK(torch::equal(one.letters, torch::tensor({{int64_t{0}, int64_t{1}, kNoLetter, kNoLetter}})));
  CHECK(torch::equal(one.inputs, torch::tensor({{kStart, int64_t{5}, kEnd, kNoPhoneme}})));
  CHECK(torch::equal(one.targets, torch::tensor({{int64_t{5}, kEnd, kNoPhoneme, kNoPhoneme}})));
  const auto both = table.batch({1, 0});
  CHECK(both.letters.sizes() == torch::IntArrayRef({2, 8}));
  CHECK(both.inputs.sizes() == torch::IntArrayRef({2, 4}));
  CHECK(torch::equal(both.targets[1], one.targets[0]));
  CHECK(pronounce::padded_length(31, 5) == pronounce::kLongest);
  CHECK_THROWS_WITH(
      pronounce::letters_tensor({"two words"}, 1, torch::kCPU), ContainsSubstring("'two words'"));
}

TEST_CASE("an epoch has every pronunciation once, in an order of its own", "[examples]") {
  auto entries = backward_words(29);
  entries[3].pronunciations.push_back({1, 1, 1});  // 30 in all
  const auto first_epoch = [&](uint64_t seed) {
    pronounce::TrainingBatches batches(entries, 6, /*unit=*/1, seed, torch::kCPU);
    REQUIRE(batches.batches_per_epoch() == 5);
    std::multiset<std::pair<std::string, std::string>> seen;
    std::string order;
    for (int64_t step = 0; step < 5; ++step) {
      const auto batch = batches.at(step);
      for (int64_t row = 0; row < 6; ++row) {
        std::ostringstream letters, targets;
        letters << batch.letters[row].masked_select(batch.letters[row] != pronounce::kNoLetter);
        targets << batch.targets[row].masked_select(batch.targets[row] != pronounce::kNoPhoneme);
        seen.emplace(letters.str(), targets.str());
        order += letters.str();
      }
    }
    return std::pair(seen, order);
  };
  const auto [seen, order] = first_epoch(1);
  CHECK(std::set(seen.begin(), seen.end()).size() == 30);
  CHECK(first_epoch(1).second == order);
  CHECK(first_epoch(2).second != order);
  CHECK(first_epoch(2).first == seen);

  pronounce::TrainingBatches batches(entries, 6, 1, 1, torch::kCPU);
  const auto later = batches.at(7);
  CHECK_FALSE(torch::equal(later.letters, batches.at(2).letters));
  CHECK(torch::equal(later.letters, batches.at(7).letters));  // whatever was asked for meanwhile
  CHECK_THROWS_WITH(
      pronounce::TrainingBatches(entries, 31, 1, 1, torch::kCPU),
      ContainsSubstring("a batch of 31, got 30"));
}

TEST_CASE("words to evaluate with come in batches of equal sizes", "[examples]") {
  const auto entries = backward_words(100);
  const auto batches = pronounce::evaluation_batches(entries, 50, 20, /*unit=*/1, torch::kCPU);
  REQUIRE(batches.size() == 3);
  int64_t words = 0;
  for (const auto& batch : batches) {
    CHECK(batch.words.letters.size(0) >= 16);
    CHECK(batch.words.letters.size(0) == static_cast<int64_t>(batch.references.size()));
    words += batch.words.letters.size(0);
  }
  CHECK(words == 50);
  CHECK(pronounce::evaluation_batches(entries, 1000, 100, 1, torch::kCPU).size() == 1);
}

TEST_CASE("the table of words says where each comes from", "[examples]") {
  const pronounce::Split words = {
      .training = {{"cat", {{23, 1, 32}}}}, .held_out = {{"dog", {{17, 0, 20}}}}};
  CHECK(pronounce::words_to_show({"cat"}, words) == std::vector<std::string>{"cat", "dog"});
  const std::string table = pronounce::words_table(
      {"cat", "dog", "frobnicate"}, words, {{23, 1, 32}, {}, {1}}, {{23, 1}, {17}, {2}});
  CHECK_THAT(
      table, ContainsSubstring("cat         trained on  K AE T      K AE T          K AE\n"));
  CHECK_THAT(table, ContainsSubstring("dog         held out    D AA G                      D\n"));
  CHECK_THAT(table, ContainsSubstring("frobnicate  unknown                 AE              AH\n"));
}
