// A pronouncing dictionary in the format of CMU's: a word and its phonemes a line.
//
//     record R AH K AO R D
//     record(2) R EH K ER D    # alternatives are numbered, and comments are possible
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "alphabet.h"

namespace pronounce {

struct Entry {
  std::string word;
  std::vector<Pronunciation> pronunciations;  // at least one; no two are equal
};

struct Dictionary {
  std::vector<Entry> entries;  // each word once, in the order of the file
  int64_t skipped = 0;         // lines of words with other characters than letters and apostrophes
};

// A line that is not of the format is an error that names file and line.
Dictionary read_dictionary(const std::string& path);

// A tenth of the words is held out to measure what a model has learned. The word itself decides, so
// that no word is in both parts with one of its pronunciations each, nor in another part tomorrow.
struct Split {
  std::vector<Entry> training;
  std::vector<Entry> held_out;
};
Split split(const std::vector<Entry>& entries);

}  // namespace pronounce
