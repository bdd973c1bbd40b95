#include "embedder.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace minilm {

namespace {

// What the set-up fetches, and what to do where it is not there.
std::string existing(const std::string& folder, const std::string& name) {
  std::string path = folder + '/' + name;
  if (!std::filesystem::exists(path)) {
    throw std::runtime_error(
        "there is no " + path +
        "\nscripts/quickstart.sh fetches the model all-MiniLM-L6-v2; --model names another folder "
        "with its model.safetensors and vocab.txt.");
  }
  return path;
}

}  // namespace

Embedder::Embedder(const std::string& folder, torch::Device device)
    : tokenizer_(existing(folder, "vocab.txt")), device_(device) {
  const std::string weights = existing(folder, "model.safetensors");
  model_->load(load_safetensors(weights), weights);
  model_->to(device);
  model_->eval();
}

torch::Tensor Embedder::embed(const std::vector<std::string>& texts, int64_t batch) {
  TORCH_CHECK(batch >= 1, "Embedder: expected a batch of at least 1 text, got ", batch);
  const torch::NoGradGuard no_grad;
  std::vector<std::vector<int64_t>> ids;
  for (const std::string& text : texts) {
    ids.push_back(tokenizer_.encode(text));
  }
  std::vector<size_t> order(texts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return ids[a].size() < ids[b].size();
  });
  std::vector<torch::Tensor> parts;
  std::vector<int64_t> rows;
  for (size_t begin = 0; begin < order.size(); begin += static_cast<size_t>(batch)) {
    const size_t end = std::min(order.size(), begin + static_cast<size_t>(batch));
    std::vector<std::vector<int64_t>> chosen;
    for (size_t i = begin; i < end; ++i) {
      chosen.push_back(std::move(ids[order[i]]));
      rows.push_back(static_cast<int64_t>(order[i]));
    }
    const TokenBatch tokens = tokenizer_.batch(chosen);
    const torch::Tensor mask = tokens.mask.defined() ? tokens.mask.to(device_) : tokens.mask;
    parts.push_back(model_->embed(tokens.ids.to(device_), mask).cpu());
  }
  TORCH_CHECK(!parts.empty(), "Embedder: expected at least one text, got none");
  const torch::Tensor sorted = torch::cat(parts);
  return torch::empty_like(sorted).index_copy_(0, torch::tensor(rows, torch::kLong), sorted);
}

std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  std::string line;
  while (std::getline(file, line)) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) {
      lines.push_back(line);
    }
  }
  if (lines.empty()) {
    throw std::runtime_error(path + ": expected a file with a text a line, got none");
  }
  return lines;
}

}  // namespace minilm
