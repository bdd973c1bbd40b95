#include "choose.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <sstream>

#include <ATen/cuda/CUDAContextLight.h>

#include "device.h"

namespace te_int8::cuda {

int64_t bucket(int64_t m) {
  if (m <= 4) return m;
  const auto step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(m - 1))) / 4;
  return (m + step - 1) / std::max<int64_t>(step, 1) * std::max<int64_t>(step, 1);
}

int multiprocessors() { return at::cuda::getCurrentDeviceProperties()->multiProcessorCount; }

namespace {

/// 90 for compute capability 9.0.
int capability() {
  const auto* device = at::cuda::getCurrentDeviceProperties();
  return 10 * device->major + device->minor;
}

bool is_for(const kernels::Gemm& gemm, int device) { return gemm.oldest <= device && device <= gemm.newest; }

/// A part of the names of the only kernels that may be chosen, on whatever GPU: to test and time one of them.
const char* forced_kernels() {
  static const char* names = std::getenv("TE_INT8_KERNELS");
  return names;
}

bool may_compute(const kernels::Gemm& gemm, int device) {
  if (forced_kernels() == nullptr) return is_for(gemm, device);
  return gemm.oldest <= device && std::string(gemm.name).find(forced_kernels()) != std::string::npos;
}

}  // namespace

std::vector<const kernels::Gemm*> gemms_for(const kernels::Product& product) {
  std::vector<const kernels::Gemm*> result;
  const int device = capability();
  for (const auto& gemm : kernels::gemms()) {
    if (may_compute(gemm, device) && gemm.type == product.type && gemm.fewest_rows <= product.m &&
        product.m <= gemm.most_rows) {
      result.push_back(&gemm);
    }
  }
  // Of all single ones the best over many shapes (docs/design.md).
  std::ranges::stable_partition(result, [](const kernels::Gemm* gemm) {
    return std::string(gemm->name) == "pingpong 128x128 c2x1" && !gemm->along_m && gemm->swizzle == 8;
  });
  return result;
}

std::string obstacle_to_cutlass() {
#ifndef TE_INT8_WITH_CUTLASS
  return "te_int8 was built without CUTLASS";
#else
  const int device = capability();
  const bool found = std::ranges::any_of(kernels::gemms(), [&](const kernels::Gemm& gemm) {
    return is_for(gemm, device) && gemm.most_rows == kernels::kAnyRows;
  });
  if (found) return "";
  return "te_int8 was built without CUTLASS kernels for compute capability " + std::to_string(device / 10) + "." +
         std::to_string(device % 10);
#endif
}

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

/// All of them in turns; then the best few again, each after it has run for a while by itself: large products are bound
/// by power, so that the clock depends on what has just run.
Candidate fastest(
    const std::vector<Candidate>& candidates, cudaStream_t stream, bool cold,
    const std::function<void(const Candidate&)>& run) {
  constexpr std::size_t kFinalists = 6;
  constexpr float kAloneMs = 8, kTimedMs = 4;  // at most; small products are timed long before
  struct Timed {
    Candidate candidate;
    float ms;
  };
  std::mt19937 order(0);
  Stopwatch stopwatch(stream, cold);
  std::vector<Timed> timed;
  for (const auto& candidate : candidates) {
    run(candidate);
    timed.push_back({candidate, 0});
  }
  const auto in_turns = [&](int rounds, const auto& count_of, const auto& alone) {
    for (auto& entry : timed) entry.ms = 0;
    for (int round = 0; round < rounds; ++round) {
      std::ranges::shuffle(timed, order);
      for (auto& entry : timed) {
        const auto one = [&] { run(entry.candidate); };
        for (int i = alone(); i > 0; --i) one();
        entry.ms += stopwatch.time(count_of(), one);
      }
    }
  };
  in_turns(3, [] { return 2; }, [] { return 0; });
  std::ranges::sort(timed, {}, &Timed::ms);
  timed.resize(std::min(timed.size(), kFinalists));
  const float ms = std::max(timed.front().ms / 3, 1e-3F);
  const auto times_in = [&](float budget) { return std::clamp(static_cast<int>(budget / ms), 2, 20); };
  in_turns(4, [&] { return times_in(kTimedMs); }, [&] { return cold ? 0 : times_in(kAloneMs); });
  return std::ranges::min_element(timed, {}, &Timed::ms)->candidate;
}

void print(const ProductKind& kind, const Candidate& choice) {
  static const bool wanted = std::getenv("TE_INT8_PRINT_CHOICES") != nullptr;
  if (!wanted) return;
  std::ostringstream line;
  line << "te_int8: " << kind.m << " x " << kind.n << " x " << kind.k << " to " << kind.out << " on cuda:" << kind.device
       << ": ";
  if (const auto* gemm = std::get_if<const kernels::Gemm*>(&choice)) {
    line << "cutlass " << (*gemm)->name << ((*gemm)->along_m ? " along M" : " along N") << " swizzle " << (*gemm)->swizzle;
  } else {
    line << "cublaslt and an epilogue";
  }
  std::cerr << line.str() + '\n';
}

constexpr int64_t kDecodingRows = 64;  ///< up to which a product is bound by reading weights

struct Choices {
  std::mutex mutex;
  std::map<ProductKind, Candidate> by_kind;
};

/// Never destroyed: a backward may still come while the process ends.
Choices& choices() {
  static auto* all = new Choices;
  return *all;
}

}  // namespace

std::optional<Candidate> chosen(const ProductKind& kind) {
  auto& [mutex, by_kind] = choices();
  const std::lock_guard lock(mutex);
  const auto found = by_kind.find(kind);
  return found == by_kind.end() ? std::nullopt : std::optional(found->second);
}

Candidate choose(
    const ProductKind& kind, cudaStream_t stream, const std::vector<Candidate>& candidates,
    const std::function<void(const Candidate&)>& run) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  if (status != cudaStreamCaptureStatusNone) return candidates.front();
  static auto* one_at_a_time = new std::mutex;  // others' launches would disturb the timing
  const std::lock_guard lock(*one_at_a_time);
  if (const auto before = chosen(kind)) return *before;
  const auto choice = candidates.size() == 1 ? candidates.front() : fastest(candidates, stream, kind.m <= kDecodingRows, run);
  print(kind, choice);
  auto& [mutex, by_kind] = choices();
  const std::lock_guard storing(mutex);
  by_kind.emplace(kind, choice);
  return choice;
}

}  // namespace te_int8::cuda
