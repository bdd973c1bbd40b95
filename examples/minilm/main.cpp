// Sentence embeddings by a published model, all-MiniLM-L6-v2, in INT8. The one line that makes it so is in
// compare.cpp; this file only puts the parts together.
#include <torch/torch.h>

#include <cstdlib>
#include <exception>
#include <iostream>

#include "../common/device.h"
#include "benchmark.h"
#include "compare.h"
#include "options.h"

namespace minilm {

namespace {

constexpr size_t kLargestTable = 20;  // texts; more would not fit a line

void run(const Options& options) {
  const examples::DeviceChoice choice = examples::choose_device(options.device);
  std::cout << "minilm on " << choice.device << " (" << choice.reason << ")\n" << std::endl;
  Embedder embedder(options.model, choice.device);
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
    return;
  }
  std::vector<Latency> latencies;
  for (const Shape& shape : options.benchmark) {
    latencies.push_back(measure(embedder, shape, options.seconds));
  }
  std::cout << "\nTime from token numbers to embeddings, medians of runs in turn:\n"
            << latency_table(latencies);
}

}  // namespace

}  // namespace minilm

int main(int argc, char** argv) {
  try {
    minilm::run(minilm::parse_options(argc, argv));
    return EXIT_SUCCESS;
  } catch (const c10::Error& error) {
    std::cerr << "minilm: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "minilm: " << error.what() << '\n';
  }
  return EXIT_FAILURE;
}
