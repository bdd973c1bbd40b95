// Words as padded tensors: batches to train on, and batches to evaluate with.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dictionary.h"

namespace pronounce {

struct WordBatch {
  torch::Tensor letters;  // int64 [words, longest spelling], filled up with kNoLetter
  torch::Tensor inputs;   // int64 [words, longest pronunciation + 1]: kStart, then the phonemes
  torch::Tensor targets;  // what follows each input: the phonemes, then kEnd, then kNoPhoneme
  int64_t tokens = 0;     // letters, phonemes and end marks
};

// `length` rounded up to a multiple of `unit`, but not above kLongest. Lengths of batches are:
// so there are few different shapes, for each of which a GPU's fastest kernel is looked for once.
int64_t padded_length(int64_t length, int64_t unit);

// Spellings alone: int64 [words, length], the longest one's, padded.
torch::Tensor letters_tensor(
    const std::vector<std::string>& words, int64_t unit, torch::Device device);

struct Example {
  std::string word;
  Pronunciation pronunciation;
};

// Examples on the device, of which any rows make a batch.
class WordTable {
 public:
  WordTable(const std::vector<Example>& examples, int64_t unit, torch::Device device);

  WordBatch batch(const std::vector<int64_t>& rows) const;
  int64_t size() const { return static_cast<int64_t>(letter_counts_.size()); }
  bool is_shorter(int64_t row, int64_t other) const;

 private:
  int64_t unit_;
  torch::Tensor letters_;   // uint8 [examples, kLongest]
  torch::Tensor phonemes_;  // uint8 [examples, kLongest + 1]: kStart, phonemes, kEnd, kNoPhoneme
  std::vector<int64_t> letter_counts_, target_counts_;
};

// Every pronunciation of every entry, once an epoch, in batches of words that are about as long as
// each other. Epochs depend on the seed and their number alone: two runs see the same batches.
class TrainingBatches {
 public:
  TrainingBatches(
      const std::vector<Entry>& entries, int64_t words, int64_t unit, uint64_t seed,
      torch::Device device);

  WordBatch at(int64_t step);
  int64_t batches_per_epoch() const { return table_.size() / words_; }
  int64_t examples() const { return table_.size(); }

 private:
  void arrange(int64_t epoch);

  WordTable table_;
  int64_t words_;
  uint64_t seed_;
  int64_t epoch_ = -1;
  std::vector<std::vector<int64_t>> rows_;  // of each batch of the epoch
};

// A batch with each word's first pronunciation, and all that count as right.
struct EvaluationBatch {
  WordBatch words;
  std::vector<std::vector<Pronunciation>> references;
};

// `count` of the entries, evenly chosen, in batches that are as equal as can be, of at most `words`.
std::vector<EvaluationBatch> evaluation_batches(
    const std::vector<Entry>& entries, int64_t count, int64_t words, int64_t unit,
    torch::Device device);

}  // namespace pronounce
