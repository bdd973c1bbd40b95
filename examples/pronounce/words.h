// A few words pronounced in full precision and in INT8, side by side.
#pragma once

#include <te_int8/te_int8.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "dictionary.h"
#include "pronouncer.h"

namespace pronounce {

struct SpokenWords {
  std::vector<Pronunciation> pronunciations;
  te_int8::Report report;  // of the scope that they were computed in
};

// `mode` is Inference, or Off for full precision.
SpokenWords speak(
    Pronouncer& model, const std::vector<std::string>& words, torch::Device device,
    te_int8::Mode mode, const te_int8::Recipe& recipe);

// `wanted`, and some of the held-out words.
std::vector<std::string> words_to_show(const std::vector<std::string>& wanted, const Split& split);

// With what the dictionary says, and whether the model was trained on it.
std::string words_table(
    const std::vector<std::string>& words, const Split& split,
    const std::vector<Pronunciation>& full, const std::vector<Pronunciation>& int8);

// Pronounces in both precisions, prints the table, and what the scope did with each layer. The two
// models may be one.
void show_words(
    const std::vector<std::string>& wanted, const Split& split, Pronouncer& full, Pronouncer& int8,
    torch::Device device, const te_int8::Recipe& recipe);

}  // namespace pronounce
