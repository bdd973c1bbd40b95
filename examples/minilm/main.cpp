// Sentence embeddings by a published model, all-MiniLM-L6-v2, in INT8. The one line that makes it so is in
// compare.cpp; this file only puts the parts together.
#include <torch/torch.h>

#include <cstdlib>
#include <iostream>

#include "../common/program.h"
#include "benchmark.h"
#include "compare.h"
#include "options.h"

namespace minilm {

namespace {

constexpr size_t kLargestTable = 20;  // texts; more would not fit a line

int run(const Options& options) {
  Embedder embedder(options.model, examples::say_device("minilm", options.device));
  std::cout << std::endl;
  const bool only_cosines = !options.cosines.empty();
  const std::string& file = only_cosines ? options.cosines : options.text;
  const auto texts = file.empty() ? built_in_sentences() : read_lines(file);

  const Comparison comparison = compare(embedder, texts);
  if (!only_cosines && texts.size() <= kLargestTable) {
    std::cout << "How alike the sentences are, in INT8 (1: the same):\n"
              << similarity_table(texts, comparison.int8) << '\n';
  }
  std::cout << cosine_line(comparison) << std::endl;
  if (options.report) {
    std::cout << "\nWhat the scope did with each layer:\n" << comparison.report;
  }
  if (only_cosines || options.benchmark.empty()) {
    return EXIT_SUCCESS;
  }
  std::vector<Latency> latencies;
  for (const Shape& shape : options.benchmark) {
    latencies.push_back(measure(embedder, shape, options.seconds));
  }
  std::cout << "\nTime from token numbers to embeddings, medians of runs in turn:\n"
            << latency_table(latencies);
  return EXIT_SUCCESS;
}

}  // namespace

}  // namespace minilm

int main(int argc, char** argv) {
  return examples::run_program(
      "minilm", [&] { return minilm::run(minilm::parse_options(argc, argv)); });
}
