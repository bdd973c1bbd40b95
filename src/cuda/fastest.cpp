#include "fastest.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <thread>

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>

namespace te_int8::cuda {

namespace {

class Event {
 public:
  Event() { C10_CUDA_CHECK(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Times candidates on a stream.
class Stopwatch {
 public:
  /// Where `cold`, weights are read from memory at every call, as in decoding: whatever the caches held is replaced first.
  Stopwatch(cudaStream_t stream, bool cold) : stream_(stream) {
    if (!cold) return;
    const int64_t bytes = 2 * int64_t{at::cuda::getCurrentDeviceProperties()->l2CacheSize};
    other_ = at::empty({bytes}, at::TensorOptions(at::kCUDA).dtype(at::kByte));
  }

  /// Milliseconds of one of `count` calls of f.
  float time(int count, const std::function<void()>& f) {
    if (!other_.defined()) return elapsed(count, f) / static_cast<float>(count);
    float total = 0;
    for (int i = 0; i < count; ++i) {
      C10_CUDA_CHECK(cudaMemsetAsync(other_.data_ptr(), 0, static_cast<std::size_t>(other_.numel()), stream_));
      total += elapsed(1, f);
    }
    return total / static_cast<float>(count);
  }

 private:
  float elapsed(int count, const std::function<void()>& f) {
    C10_CUDA_CHECK(cudaEventRecord(begin_.get(), stream_));
    for (int i = 0; i < count; ++i) f();
    C10_CUDA_CHECK(cudaEventRecord(end_.get(), stream_));
    C10_CUDA_CHECK(cudaEventSynchronize(end_.get()));
    float ms = 0;
    C10_CUDA_CHECK(cudaEventElapsedTime(&ms, begin_.get(), end_.get()));
    return ms;
  }

  cudaStream_t stream_;
  at::Tensor other_;
  Event begin_, end_;
};

/// A kernel's name without what else can be chosen about it.
std::string family(const Candidate& candidate) {
  const auto* gemm = std::get_if<const kernels::Gemm*>(&candidate);
  return gemm == nullptr ? "cublaslt" : (*gemm)->name;
}

struct Timed {
  Candidate candidate;
  float ms = 0;     ///< of one call, the median of some rounds
  float total = 0;  ///< of `ms` over several states
};

enum class Before { Nothing, Rest, OwnWork };

/// Times `timed` in rounds, each in another order.
class Rounds {
 public:
  Rounds(cudaStream_t stream, bool cold, const std::function<void(const Candidate&)>& run)
      : stopwatch_(stream, cold), run_(run) {}

  /// Each takes `count` calls a round, after `before`. Leaves `timed` sorted.
  void time(std::vector<Timed>& timed, int rounds, int count, Before before) {
    constexpr std::chrono::milliseconds kRest(22);
    constexpr float kOwnWorkMs = 50;
    std::vector<std::vector<float>> times(timed.size());
    std::vector<std::size_t> order(timed.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (int round = 0; round < rounds; ++round) {
      std::ranges::shuffle(order, random_);
      for (const auto i : order) {
        const auto one = [&] { run_(timed[i].candidate); };
        if (before == Before::Rest) std::this_thread::sleep_for(kRest);
        if (before == Before::OwnWork) {
          for (float ms = 0; ms < kOwnWorkMs; ms += std::max(timed[i].ms, kShortestMs)) one();
        }
        times[i].push_back(stopwatch_.time(count, one));
      }
    }
    for (std::size_t i = 0; i < timed.size(); ++i) {
      const auto middle = times[i].begin() + rounds / 2;
      std::ranges::nth_element(times[i], middle);
      timed[i].ms = *middle;
      timed[i].total += *middle;
    }
    std::ranges::sort(timed, {}, &Timed::ms);
  }

  static constexpr float kShortestMs = 1e-3F;

 private:
  Stopwatch stopwatch_;
  const std::function<void(const Candidate&)>& run_;
  std::mt19937 random_{0};
};

}  // namespace

Candidate fastest(
    const std::vector<Candidate>& candidates, cudaStream_t stream, bool cold,
    const std::function<void(const Candidate&)>& run) {
  constexpr float kWorthAnotherLook = 1.15F, kBoundByPowerMs = 0.1F;
  constexpr float kTimedMs = 4;  // at most; small products are timed long before
  constexpr int kOfAFamily = 2;
  constexpr std::size_t kBusy = 4;  // finalists
  std::vector<Timed> timed;
  std::exception_ptr failure;
  for (const auto& candidate : candidates) {
    try {
      run(candidate);
      timed.push_back({.candidate = candidate});
    } catch (const c10::Error&) {  // a kernel that cannot do it; others can
      failure = std::current_exception();
    }
  }
  if (timed.empty()) std::rethrow_exception(failure);
  Rounds rounds(stream, cold, run);
  rounds.time(timed, 3, 2, Before::Nothing);
  const float ms = std::max(timed.front().ms, Rounds::kShortestMs);
  std::map<std::string, int> taken;
  std::erase_if(timed, [&](const Timed& entry) {
    return entry.ms > kWorthAnotherLook * ms || ++taken[family(entry.candidate)] > kOfAFamily;
  });
  for (auto& entry : timed) entry.total = 0;
  const int count = std::clamp(static_cast<int>(kTimedMs / ms), 2, 20);
  if (cold || ms < kBoundByPowerMs) {
    rounds.time(timed, 5, count, Before::Nothing);
  } else {
    rounds.time(timed, 3, count, Before::Rest);
    if (timed.size() > kBusy) timed.erase(timed.begin() + kBusy, timed.end());
    rounds.time(timed, 3, count, Before::OwnWork);
  }
  return std::ranges::min_element(timed, {}, &Timed::total)->candidate;
}

}  // namespace te_int8::cuda
