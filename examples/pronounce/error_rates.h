// How wrong pronunciations are, as such models are usually measured.
#pragma once

#include <cstdint>
#include <vector>

#include "alphabet.h"

namespace pronounce {

// The fewest phonemes to insert, drop or replace that turn one into the other.
int64_t edit_distance(const Pronunciation& from, const Pronunciation& to);

class ErrorRates {
 public:
  // Of several references the one that `spoken` is nearest to counts.
  void add(const Pronunciation& spoken, const std::vector<Pronunciation>& references);

  // Edit distances over the references' lengths.
  double of_phonemes() const;
  // The part of words that are none of their references.
  double of_words() const;

 private:
  int64_t distance_ = 0;
  int64_t phonemes_ = 0;
  int64_t wrong_words_ = 0;
  int64_t words_ = 0;
};

}  // namespace pronounce
