#include "word_batches.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace pronounce {

namespace {

std::vector<Example> every_pronunciation(const std::vector<Entry>& entries) {
  std::vector<Example> examples;
  for (const Entry& entry : entries) {
    for (const Pronunciation& pronunciation : entry.pronunciations) {
      examples.push_back({entry.word, pronunciation});
    }
  }
  return examples;
}

// Rows of codes, filled up to `length` each: int64 [rows, length].
torch::Tensor filled_up(
    const std::vector<std::vector<int64_t>>& rows, int64_t length, int64_t filler) {
  std::vector<int64_t> codes;
  for (const auto& row : rows) {
    codes.insert(codes.end(), row.begin(), row.end());
    codes.resize(codes.size() + static_cast<size_t>(length) - row.size(), filler);
  }
  return torch::tensor(codes, torch::kLong).view({-1, length});
}

// The longest of the rows, padded.
int64_t batch_length(
    const std::vector<int64_t>& lengths, const std::vector<int64_t>& rows, int64_t unit) {
  int64_t longest = 0;
  for (const int64_t row : rows) {
    longest = std::max(longest, lengths[static_cast<size_t>(row)]);
  }
  return padded_length(longest, unit);
}

}  // namespace

int64_t padded_length(int64_t length, int64_t unit) {
  return std::min(kLongest, (length + unit - 1) / unit * unit);
}

torch::Tensor letters_tensor(
    const std::vector<std::string>& words, int64_t unit, torch::Device device) {
  std::vector<std::vector<int64_t>> rows;
  int64_t longest = 0;
  for (const std::string& word : words) {
    TORCH_CHECK(
        is_spelling(word), "letters_tensor: expected 1 to ", kLongest,
        " letters a to z and apostrophes, got '", word, "'");
    rows.push_back(letters_of(word));
    longest = std::max(longest, static_cast<int64_t>(word.size()));
  }
  return filled_up(rows, padded_length(longest, unit), kNoLetter).to(device);
}

WordTable::WordTable(const std::vector<Example>& examples, int64_t unit, torch::Device device)
    : unit_(unit) {
  std::vector<std::string> words;
  std::vector<std::vector<int64_t>> spoken;
  for (const auto& [word, pronunciation] : examples) {
    words.push_back(word);
    spoken.push_back({kStart});
    spoken.back().insert(spoken.back().end(), pronunciation.begin(), pronunciation.end());
    spoken.back().push_back(kEnd);
    letter_counts_.push_back(static_cast<int64_t>(word.size()));
    target_counts_.push_back(static_cast<int64_t>(pronunciation.size()) + 1);
  }
  letters_ = letters_tensor(words, /*unit=*/kLongest, torch::kCPU).to(device, torch::kUInt8);
  phonemes_ = filled_up(spoken, kLongest + 1, kNoPhoneme).to(device, torch::kUInt8);
}

WordBatch WordTable::batch(const std::vector<int64_t>& rows) const {
  const auto index = torch::tensor(rows, torch::kLong).to(letters_.device());
  const auto take = [&](const torch::Tensor& table, int64_t first, int64_t length) {
    return table.narrow(1, first, length).index_select(0, index).to(torch::kLong);
  };
  const int64_t letters = batch_length(letter_counts_, rows, unit_);
  const int64_t targets = batch_length(target_counts_, rows, unit_);
  WordBatch batch = {
      take(letters_, 0, letters), take(phonemes_, 0, targets), take(phonemes_, 1, targets)};
  for (const int64_t row : rows) {
    const auto i = static_cast<size_t>(row);
    batch.tokens += letter_counts_[i] + target_counts_[i];
  }
  return batch;
}

bool WordTable::is_shorter(int64_t row, int64_t other) const {
  const auto i = static_cast<size_t>(row), j = static_cast<size_t>(other);
  return std::pair(letter_counts_[i], target_counts_[i]) <
         std::pair(letter_counts_[j], target_counts_[j]);
}

TrainingBatches::TrainingBatches(
    const std::vector<Entry>& entries, int64_t words, int64_t unit, uint64_t seed,
    torch::Device device)
    : table_(every_pronunciation(entries), unit, device), words_(words), seed_(seed) {
  TORCH_CHECK(
      table_.size() >= words, "TrainingBatches: expected pronunciations for a batch of ", words,
      ", got ", table_.size());
}

WordBatch TrainingBatches::at(int64_t step) {
  const int64_t epoch = step / batches_per_epoch();
  if (epoch != epoch_) {
    arrange(epoch);
    epoch_ = epoch;
  }
  return table_.batch(rows_[static_cast<size_t>(step % batches_per_epoch())]);
}

void TrainingBatches::arrange(int64_t epoch) {
  std::seed_seq sequence = {seed_, static_cast<uint64_t>(epoch)};
  std::mt19937_64 random(sequence);
  std::vector<int64_t> order(static_cast<size_t>(table_.size()));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::shuffle(order.begin(), order.end(), random);
  // What is too few for a batch is left out before the order is by length: anybody, not the longest.
  order.resize(static_cast<size_t>(batches_per_epoch() * words_));
  std::stable_sort(order.begin(), order.end(), [&](int64_t row, int64_t other) {
    return table_.is_shorter(row, other);
  });
  rows_.clear();
  for (auto begin = order.begin(); begin != order.end(); begin += words_) {
    rows_.emplace_back(begin, begin + words_);
  }
  std::shuffle(rows_.begin(), rows_.end(), random);
}

std::vector<EvaluationBatch> evaluation_batches(
    const std::vector<Entry>& entries, int64_t count, int64_t words, int64_t unit,
    torch::Device device) {
  const auto available = static_cast<int64_t>(entries.size());
  count = std::min(count, available);
  std::vector<Entry> chosen;
  for (int64_t i = 0; i < count; ++i) {
    chosen.push_back(entries[static_cast<size_t>(i * available / count)]);
  }
  std::stable_sort(chosen.begin(), chosen.end(), [](const Entry& entry, const Entry& other) {
    return entry.word.size() < other.word.size();
  });
  std::vector<EvaluationBatch> batches;
  const int64_t parts = (count + words - 1) / words;
  for (int64_t part = 0; part < parts; ++part) {
    std::vector<Example> examples;
    std::vector<int64_t> rows;
    EvaluationBatch batch;
    for (int64_t i = part * count / parts; i < (part + 1) * count / parts; ++i) {
      const Entry& entry = chosen[static_cast<size_t>(i)];
      rows.push_back(static_cast<int64_t>(rows.size()));
      examples.push_back({entry.word, entry.pronunciations.front()});
      batch.references.push_back(entry.pronunciations);
    }
    batch.words = WordTable(examples, unit, device).batch(rows);
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace pronounce
