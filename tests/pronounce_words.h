// Words that the tests of examples/pronounce learn, and are held out from.
#pragma once

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../examples/pronounce/dictionary.h"

namespace te_int8_tests {

// Words of the letters a to h, each pronounced as its letters' numbers backwards.
inline std::vector<pronounce::Entry> backward_words(size_t count) {
  std::mt19937 random(1);
  std::map<std::string, pronounce::Pronunciation> words;
  while (words.size() < count) {
    std::string word(2 + random() % 4, 'a');
    std::generate(word.begin(), word.end(), [&] { return static_cast<char>('a' + random() % 8); });
    const auto letters = pronounce::letters_of(word);
    words[word] = {letters.rbegin(), letters.rend()};
  }
  std::vector<pronounce::Entry> entries;
  for (const auto& [word, pronunciation] : words) {
    entries.push_back({word, {pronunciation}});
  }
  return entries;
}

}  // namespace te_int8_tests
