// What INT8 does to embeddings.
#pragma once

#include <te_int8/te_int8.h>

#include <string>
#include <vector>

#include "embedder.h"

namespace minilm {

// Sentences in pairs that say the same in other words.
const std::vector<std::string>& built_in_sentences();

struct Comparison {
  torch::Tensor full;  // embeddings, [texts, width]
  torch::Tensor int8;
  te_int8::Report report;

  torch::Tensor cosines() const { return (full * int8).sum(1); }
};

Comparison compare(Embedder& embedder, const std::vector<std::string>& texts);

// How alike texts are by INT8 embeddings, as a matrix.
std::string similarity_table(
    const std::vector<std::string>& texts, const torch::Tensor& embeddings);

// The mean and the worst cosine between a text's two embeddings.
std::string cosine_line(const Comparison& comparison);

}  // namespace minilm
