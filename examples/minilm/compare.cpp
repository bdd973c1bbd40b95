#include "compare.h"

#include <iomanip>
#include <sstream>

#include "../common/text.h"

namespace minilm {

const std::vector<std::string>& built_in_sentences() {
  static const std::vector<std::string> sentences = {
      "The cat sleeps on the warm stove.",
      "A kitten is napping where it is cosy.",
      "Shares fell sharply after the bank's announcement.",
      "The stock market dropped when the lender spoke.",
      "How do I bake bread without yeast?",
      "A recipe for a loaf that needs no leaven."};
  return sentences;
}

Comparison compare(Embedder& embedder, const std::vector<std::string>& texts) {
  Comparison result;
  result.full = embedder.embed(texts);
  te_int8::AutocastGuard guard(embedder.model(), te_int8::Mode::Inference);
  result.int8 = embedder.embed(texts);
  result.report = guard.report();
  return result;
}

std::string similarity_table(
    const std::vector<std::string>& texts, const torch::Tensor& embeddings) {
  const torch::Tensor similarities = embeddings.mm(embeddings.t());
  std::ostringstream out;
  for (size_t i = 0; i < texts.size(); ++i) {
    for (size_t j = 0; j < texts.size(); ++j) {
      const auto row = static_cast<int64_t>(i), column = static_cast<int64_t>(j);
      out << std::setw(6) << examples::fixed(similarities[row][column].item<double>(), 2);
    }
    out << "  " << texts[i] << '\n';
  }
  return out.str();
}

std::string cosine_line(const Comparison& comparison) {
  const torch::Tensor cosines = comparison.cosines();
  return "Cosine between a text's fp32 and INT8 embeddings, over " +
         examples::grouped(cosines.numel()) + " texts: mean " +
         examples::fixed(cosines.mean().item<double>(), 5) + ", worst " +
         examples::fixed(cosines.min().item<double>(), 5);
}

}  // namespace minilm
