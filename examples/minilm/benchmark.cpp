#include "benchmark.h"

#include <te_int8/te_int8.h>

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <sstream>

#include "../common/text.h"

namespace minilm {

namespace {

constexpr int64_t kFirstWord = 1000;  // ids from here to kWords are ordinary words and pieces
constexpr int64_t kWords = 30000;
constexpr size_t kWarmUps = 3;
constexpr size_t kLeastRuns = 10;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double milliseconds(const std::chrono::steady_clock::time_point& start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace

Latency measure(Embedder& embedder, Shape shape, double seconds) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const auto ids = torch::randint(kFirstWord, kWords, {shape.batch, shape.tokens}, torch::kLong)
                       .to(embedder.device());
  const auto run = [&] {
    const auto start = std::chrono::steady_clock::now();
    embedder.model()->embed(ids).cpu();
    return milliseconds(start);
  };
  const auto run_int8 = [&] {
    // Opening a scope is not part of a run: a program opens one and keeps it.
    const te_int8::AutocastGuard guard(embedder.model(), te_int8::Mode::Inference);
    return run();
  };
  std::vector<double> full, quantized;
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < kWarmUps + kLeastRuns || milliseconds(start) < 1000 * seconds; ++i) {
    const bool int8_first = i % 2 == 1;
    double int8_ms = int8_first ? run_int8() : 0;
    const double full_ms = run();
    if (!int8_first) int8_ms = run_int8();
    if (i >= kWarmUps) {
      full.push_back(full_ms);
      quantized.push_back(int8_ms);
    }
  }
  return {shape, median(full), median(quantized), static_cast<int64_t>(full.size())};
}

std::string latency_table(const std::vector<Latency>& latencies) {
  std::ostringstream out;
  out << std::left << std::setw(16) << "batch x tokens" << std::right << std::setw(10) << "fp32 ms"
      << std::setw(10) << "INT8 ms" << std::setw(10) << "faster" << std::setw(8) << "runs" << '\n';
  for (const Latency& latency : latencies) {
    const std::string shape =
        std::to_string(latency.shape.batch) + 'x' + std::to_string(latency.shape.tokens);
    out << std::left << std::setw(16) << shape << std::right << std::setw(10)
        << examples::fixed(latency.full_ms, 2) << std::setw(10)
        << examples::fixed(latency.int8_ms, 2) << std::setw(9)
        << examples::fixed(latency.full_ms / latency.int8_ms, 2) << 'x' << std::setw(8)
        << latency.runs << '\n';
  }
  return out.str();
}

}  // namespace minilm
