#include "error_rates.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

namespace pronounce {

int64_t edit_distance(const Pronunciation& from, const Pronunciation& to) {
  // distances[j] is that of the part of `from` up to here to the first j of `to`.
  std::vector<int64_t> distances(to.size() + 1);
  std::iota(distances.begin(), distances.end(), int64_t{0});
  for (size_t i = 0; i < from.size(); ++i) {
    int64_t replaced = distances[0];
    distances[0] = static_cast<int64_t>(i) + 1;
    for (size_t j = 0; j < to.size(); ++j) {
      const int64_t dropped = distances[j + 1];
      distances[j + 1] =
          std::min({replaced + (from[i] == to[j] ? 0 : 1), dropped + 1, distances[j] + 1});
      replaced = dropped;
    }
  }
  return distances.back();
}

void ErrorRates::add(const Pronunciation& spoken, const std::vector<Pronunciation>& references) {
  TORCH_CHECK(!references.empty(), "ErrorRates: expected at least one reference, got none");
  int64_t least = edit_distance(spoken, references.front());
  size_t nearest = 0;
  for (size_t i = 1; i < references.size(); ++i) {
    const int64_t distance = edit_distance(spoken, references[i]);
    if (distance < least) {
      least = distance;
      nearest = i;
    }
  }
  distance_ += least;
  phonemes_ += static_cast<int64_t>(references[nearest].size());
  wrong_words_ += least > 0 ? 1 : 0;
  ++words_;
}

double ErrorRates::of_phonemes() const {
  return static_cast<double>(distance_) / static_cast<double>(phonemes_);
}

double ErrorRates::of_words() const {
  return static_cast<double>(wrong_words_) / static_cast<double>(words_);
}

}  // namespace pronounce
