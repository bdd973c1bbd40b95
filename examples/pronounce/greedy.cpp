#include "greedy.h"

#include <algorithm>

namespace pronounce {

std::vector<Pronunciation> pronounce(
    Pronouncer& model, const torch::Tensor& letters, int64_t length_unit) {
  const Memory memory = model->encode(letters);
  torch::Tensor said = torch::full({letters.size(0), kLongest}, kNoPhoneme, letters.options());
  said.select(1, 0).fill_(kStart);
  torch::Tensor ended = torch::zeros({letters.size(0)}, letters.options().dtype(torch::kBool));
  for (int64_t time = 1; time < kLongest && !ended.all().item<bool>(); ++time) {
    // What fills it up after `time` is seen by no moment before.
    const auto so_far = said.narrow(1, 0, padded_length(time, length_unit));
    const torch::Tensor state = model->decode(memory, so_far)[time - 1];
    const auto next = model->logits(state).argmax(-1).masked_fill(ended, kNoPhoneme);
    said.select(1, time).copy_(next);
    ended.logical_or_(next == kEnd);
  }

  std::vector<Pronunciation> pronunciations;
  const torch::Tensor codes = said.cpu();
  for (int64_t word = 0; word < codes.size(0); ++word) {
    const auto* first = codes.const_data_ptr<int64_t>() + word * kLongest + 1;
    const auto* last =
        std::find_if(first, first + kLongest - 1, [](int64_t code) { return code >= kEnd; });
    pronunciations.emplace_back(first, last);
  }
  return pronunciations;
}

}  // namespace pronounce
