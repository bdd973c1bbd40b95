// Letters and phonemes as the numbers that a model sees.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pronounce {

// The longest spelling in letters, and the longest pronunciation in phonemes with its end mark.
inline constexpr int64_t kLongest = 32;

// a to z are 0 to 25. Shorter words of a batch are filled up with kNoLetter.
inline constexpr int64_t kApostrophe = 26;
inline constexpr int64_t kNoLetter = 27;
inline constexpr int64_t kLetterCodes = 28;

// Phonemes are 0 to 38. A model says one of them or kEnd; it is told kStart first, and kNoPhoneme
// where a word of a batch has ended.
inline constexpr int64_t kEnd = 39;
inline constexpr int64_t kSpokenCodes = 40;
inline constexpr int64_t kStart = 40;
inline constexpr int64_t kNoPhoneme = 41;
inline constexpr int64_t kPhonemeCodes = 42;

using Pronunciation = std::vector<int64_t>;  // phonemes alone

// Letters a to z and apostrophes, at least one and at most kLongest.
bool is_spelling(const std::string& word);
std::vector<int64_t> letters_of(const std::string& word);

// One of ARPAbet's 39 phonemes of American English. Vowels may have a stress mark, as in AH0, which
// is dropped: how a word is stressed is not learned.
std::optional<int64_t> phoneme_named(std::string name);

// "HH AH L OW"
std::string written(const Pronunciation& pronunciation);

}  // namespace pronounce
