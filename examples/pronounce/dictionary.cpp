#include "dictionary.h"

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "../common/read_file.h"
#include "../common/text.h"

namespace pronounce {

namespace {

struct Line {
  std::string word;
  int64_t number = 1;  // which of the word's pronunciations
  Pronunciation pronunciation;
};

// "record(2)" -> 2 and the word alone; 1 for a word without a number.
std::optional<int64_t> take_number(std::string& word) {
  const size_t bracket = word.find('(');
  if (bracket == std::string::npos) {
    return 1;
  }
  const std::string digits = word.substr(bracket + 1, word.size() - bracket - 2);
  const bool valid = bracket > 0 && word.back() == ')' && !digits.empty() && digits.size() < 4 &&
                     digits.find_first_not_of("0123456789") == std::string::npos;
  word.resize(bracket);
  return valid ? std::optional(std::stoll(digits)) : std::nullopt;
}

// Throws what was expected instead of `text`.
Line parse(const std::string& text) {
  std::istringstream fields(text.substr(0, text.find(" #")));
  Line line;
  std::getline(fields, line.word, ' ');
  const std::optional<int64_t> number = take_number(line.word);
  if (line.word.empty() || !number) {
    throw std::runtime_error("expected a word, like record or record(2), got '" + text + "'");
  }
  line.number = *number;
  for (std::string name; fields >> name;) {
    const std::optional<int64_t> phoneme = phoneme_named(name);
    if (!phoneme) {
      throw std::runtime_error("expected one of ARPAbet's 39 phonemes, got '" + name + "'");
    }
    line.pronunciation.push_back(*phoneme);
  }
  const auto phonemes = static_cast<int64_t>(line.pronunciation.size());
  if (phonemes < 1 || phonemes >= kLongest) {
    throw std::runtime_error(
        "expected 1 to " + std::to_string(kLongest - 1) + " phonemes, got " +
        std::to_string(phonemes));
  }
  if (static_cast<int64_t>(line.word.size()) > kLongest) {
    throw std::runtime_error(
        "expected at most " + std::to_string(kLongest) + " letters, got " +
        std::to_string(line.word.size()));
  }
  return line;
}

// Brings the pronunciations of a word together, wherever in the file they stand.
class Collector {
 public:
  void add(Line line) {
    if (!is_spelling(line.word)) {
      ++dictionary_.skipped;
      return;
    }
    const int64_t number = ++numbers_[line.word];
    if (line.number != number) {
      throw std::runtime_error(
          "expected pronunciation " + std::to_string(number) + " of " + line.word + ", got " +
          std::to_string(line.number));
    }
    const auto [place, is_new] = places_.try_emplace(line.word, dictionary_.entries.size());
    if (is_new) {
      dictionary_.entries.push_back({line.word, {}});
    }
    // Without their stress some are equal.
    auto& known = dictionary_.entries[place->second].pronunciations;
    if (std::find(known.begin(), known.end(), line.pronunciation) == known.end()) {
      known.push_back(std::move(line.pronunciation));
    }
  }

  Dictionary take() { return std::move(dictionary_); }

 private:
  Dictionary dictionary_;
  std::unordered_map<std::string, size_t> places_;
  std::unordered_map<std::string, int64_t> numbers_;
};

}  // namespace

Dictionary read_dictionary(const std::string& path) {
  std::istringstream file(examples::read_file(path));
  Collector collector;
  std::string text;
  for (int64_t number = 1; std::getline(file, text); ++number) {
    try {
      collector.add(parse(text));
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path + ":" + std::to_string(number) + ": " + error.what());
    }
  }
  Dictionary dictionary = collector.take();
  if (dictionary.entries.empty()) {
    throw std::runtime_error(path + ": expected words of letters a to z, got none");
  }
  return dictionary;
}

Split split(const std::vector<Entry>& entries) {
  Split parts;
  for (const Entry& entry : entries) {
    (examples::hash_of(entry.word) % 10 == 0 ? parts.held_out : parts.training).push_back(entry);
  }
  return parts;
}

}  // namespace pronounce
