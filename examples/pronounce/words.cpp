#include "words.h"

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "../common/evaluation_scope.h"
#include "greedy.h"

namespace pronounce {

namespace {

const Entry* find(const std::vector<Entry>& entries, const std::string& word) {
  const auto found = std::find_if(
      entries.begin(), entries.end(), [&](const Entry& entry) { return entry.word == word; });
  return found == entries.end() ? nullptr : &*found;
}

}  // namespace

SpokenWords speak(
    Pronouncer& model, const std::vector<std::string>& words, torch::Device device,
    te_int8::Mode mode, const te_int8::Recipe& recipe) {
  const examples::EvaluationScope evaluation(*model);
  const torch::Tensor letters = letters_tensor(words, /*unit=*/1, device);
  te_int8::AutocastGuard guard(*model, mode, recipe);
  SpokenWords spoken;
  spoken.pronunciations = pronounce(model, letters, /*length_unit=*/1);
  spoken.report = guard.report();
  return spoken;
}

std::vector<std::string> words_to_show(const std::vector<std::string>& wanted, const Split& split) {
  constexpr size_t kHeldOut = 12;
  std::vector<std::string> words = wanted;
  for (size_t i = 0; i < std::min(kHeldOut, split.held_out.size()); ++i) {
    words.push_back(split.held_out[(2 * i + 1) * split.held_out.size() / (2 * kHeldOut)].word);
  }
  return words;
}

std::string words_table(
    const std::vector<std::string>& words, const Split& split,
    const std::vector<Pronunciation>& full, const std::vector<Pronunciation>& int8) {
  std::vector<std::vector<std::string>> rows = {
      {"word", "", "dictionary", "full precision", "INT8"}};
  for (size_t i = 0; i < words.size(); ++i) {
    const Entry* trained = find(split.training, words[i]);
    const Entry* entry = trained != nullptr ? trained : find(split.held_out, words[i]);
    rows.push_back(
        {words[i],
         trained != nullptr ? "trained on"
         : entry != nullptr ? "held out"
                            : "unknown",
         entry != nullptr ? written(entry->pronunciations.front()) : "", written(full[i]),
         written(int8[i])});
  }
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], row[column].size());
    }
  }
  std::ostringstream out;
  for (const auto& row : rows) {
    for (size_t column = 0; column + 1 < row.size(); ++column) {
      out << std::left << std::setw(static_cast<int>(widths[column]) + 2) << row[column];
    }
    out << row.back() << '\n';
  }
  return out.str();
}

void show_words(
    const std::vector<std::string>& wanted, const Split& split, Pronouncer& full, Pronouncer& int8,
    torch::Device device, const te_int8::Recipe& recipe) {
  const auto words = words_to_show(wanted, split);
  const SpokenWords in_full = speak(full, words, device, te_int8::Mode::Off, recipe);
  const SpokenWords in_int8 = speak(int8, words, device, te_int8::Mode::Inference, recipe);
  std::cout << '\n'
            << words_table(words, split, in_full.pronunciations, in_int8.pronunciations)
            << "\nWhat the scope did with each layer:\n"
            << in_int8.report;
}

}  // namespace pronounce
