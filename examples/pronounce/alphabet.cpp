#include "alphabet.h"

#include <algorithm>
#include <array>

namespace pronounce {

namespace {

// Vowels first: they alone are stressed.
constexpr std::array<const char*, kEnd> kPhonemeNames = {
    "AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY",
    "UH", "UW", "B",  "CH", "D",  "DH", "F",  "G",  "HH", "JH", "K",  "L",  "M",
    "N",  "NG", "P",  "R",  "S",  "SH", "T",  "TH", "V",  "W",  "Y",  "Z",  "ZH"};
constexpr int64_t kVowels = 15;

bool is_letter(char character) { return character >= 'a' && character <= 'z'; }

}  // namespace

bool is_spelling(const std::string& word) {
  return !word.empty() && static_cast<int64_t>(word.size()) <= kLongest &&
         std::all_of(word.begin(), word.end(), [](char character) {
           return is_letter(character) || character == '\'';
         });
}

std::vector<int64_t> letters_of(const std::string& word) {
  std::vector<int64_t> letters;
  for (const char character : word) {
    letters.push_back(is_letter(character) ? character - 'a' : kApostrophe);
  }
  return letters;
}

std::optional<int64_t> phoneme_named(std::string name) {
  const bool stressed = !name.empty() && name.back() >= '0' && name.back() <= '2';
  if (stressed) {
    name.pop_back();
  }
  const auto found = std::find(kPhonemeNames.begin(), kPhonemeNames.end(), name);
  const auto phoneme = static_cast<int64_t>(found - kPhonemeNames.begin());
  if (phoneme == kEnd || (stressed && phoneme >= kVowels)) {
    return std::nullopt;
  }
  return phoneme;
}

std::string written(const Pronunciation& pronunciation) {
  std::string text;
  for (const int64_t phoneme : pronunciation) {
    if (!text.empty()) {
      text += ' ';
    }
    text += kPhonemeNames.at(static_cast<size_t>(phoneme));
  }
  return text;
}

}  // namespace pronounce
