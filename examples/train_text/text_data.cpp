#include "text_data.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <sstream>
#include <stdexcept>

#include "../common/read_file.h"
#include "../common/text.h"

namespace train_text {

TextData::TextData(const std::string& text, int64_t context, torch::Device device)
    : context_(context) {
  const auto size = static_cast<int64_t>(text.size());
  const int64_t train_size = size - size / 10;
  TORCH_CHECK(
      size / 10 > context, "the text is too short: a tenth of it, ", size / 10,
      " bytes, has to be longer than the context of ", context);
  torch::Tensor bytes = torch::empty({size}, torch::kUInt8);
  std::memcpy(bytes.data_ptr<uint8_t>(), text.data(), text.size());
  bytes = bytes.to(device);
  train_ = bytes.slice(0, 0, train_size);
  validation_ = bytes.slice(0, train_size);
}

Batch TextData::windows_at(const torch::Tensor& bytes, const torch::Tensor& starts) const {
  const auto offsets = torch::arange(context_ + 1, starts.options());
  const auto places = (starts.unsqueeze(1) + offsets).to(bytes.device());
  const auto windows = bytes.index({places}).to(torch::kLong);
  return {windows.slice(1, 0, context_), windows.slice(1, 1)};
}

Batch TextData::train_batch(uint64_t seed, int64_t step, int64_t windows) const {
  std::seed_seq sequence = {seed, static_cast<uint64_t>(step)};
  std::mt19937_64 random(sequence);
  std::uniform_int_distribution<int64_t> start(0, train_bytes() - context_ - 1);
  std::vector<int64_t> starts(static_cast<size_t>(windows));
  std::generate(starts.begin(), starts.end(), [&] { return start(random); });
  return windows_at(train_, torch::tensor(starts, torch::kLong));
}

int64_t TextData::validation_windows() const { return (validation_bytes() - 1) / context_; }

std::vector<Batch> TextData::validation_batches(int64_t count, int64_t windows) const {
  const int64_t available = validation_windows();
  count = std::min(count, available);
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < count; ++i) {
    starts.push_back(i * available / count * context_);
  }
  std::vector<Batch> batches;
  for (const torch::Tensor& part : torch::tensor(starts, torch::kLong).split(windows)) {
    batches.push_back(windows_at(validation_, part));
  }
  return batches;
}

double TextData::unigram_loss() const {
  const auto counts = [](const torch::Tensor& bytes) {
    return torch::bincount(bytes.cpu(), /*weights=*/{}, /*minlength=*/256).to(torch::kDouble);
  };
  // One is added to every count: a byte that only the validation part has must not cost infinity.
  const auto train_counts = counts(train_) + 1;
  const auto log_frequency = (train_counts / train_counts.sum()).log();
  const auto validation_counts = counts(validation_);
  return -((validation_counts * log_frequency).sum() / validation_counts.sum()).item<double>();
}

std::string read_text(const std::string& path) {
  std::string text = examples::read_file(path);
  if (text.empty()) {
    throw std::runtime_error("the text " + path + " is empty");
  }
  return text;
}

std::string fingerprint(const std::string& text) {
  std::ostringstream out;
  out << std::hex << examples::hash_of(text);
  return out.str();
}

}  // namespace train_text
