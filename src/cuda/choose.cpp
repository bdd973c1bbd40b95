#include "choose.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <tuple>
#include <utility>

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include "device.h"

namespace te_int8::cuda {

int64_t bucket(int64_t size) {
  if (size <= 4) return size;
  const auto step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(size - 1))) / 4;
  return (size + step - 1) / step * step;
}

namespace {

/// "pingpong 128x128 c2x1 along N swizzle 8"
std::string description(const kernels::Gemm& gemm) {
  return std::string(gemm.name) + (gemm.along_m ? " along M" : " along N") + " swizzle " + std::to_string(gemm.swizzle);
}

/// A part of the descriptions of the only kernels that may be chosen, on whatever GPU: to test and time one of them.
const char* forced_kernels() {
  static const char* names = std::getenv("TE_INT8_KERNELS");
  return names;
}

}  // namespace

bool kernels_are_forced() { return forced_kernels() != nullptr; }

bool may_be_chosen(std::string_view kernel) {
  return !kernels_are_forced() || kernel.find(forced_kernels()) != std::string_view::npos;
}

namespace {

bool may_compute(const kernels::Gemm& gemm, int device) {
  if (!kernels_are_forced()) return is_for(gemm, device);
  return gemm.oldest <= device && may_be_chosen(description(gemm));
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
  // Of all single ones the best over many shapes (docs/design.md); the others in an order of their own, not the linker's.
  const auto rank = [](const kernels::Gemm* gemm) {
    const std::string name = gemm->name;
    const bool best = name == "pingpong 128x128 c2x1" && !gemm->along_m && gemm->swizzle == 8;
    return std::tuple(!best, name, gemm->along_m, gemm->swizzle);
  };
  std::ranges::sort(result, {}, rank);
  TORCH_CHECK_VALUE(
      !result.empty() || forced_kernels() == nullptr, "te_int8::scaled_mm: expected TE_INT8_KERNELS to be a part of the "
      "description of a kernel for ", product.m, " x ", product.n, " x ", product.k, " on this GPU, got '", forced_kernels(), "'");
  return result;
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

/// A kernel's name without what else can be chosen about it.
std::string family(const Candidate& candidate) {
  const auto* gemm = std::get_if<const kernels::Gemm*>(&candidate);
  return gemm == nullptr ? "cublaslt" : (*gemm)->name;
}

/// All of them in turns; then the best two of each family again, each after it has run for a while by itself. Large
/// products are bound by power: in turns all have the clock that their mean power allows, and what counts is how many
/// cycles they take; by itself a kernel that takes more cycles with less power is perhaps the faster one. The times are
/// medians of the rounds.
Candidate fastest(
    const std::vector<Candidate>& candidates, cudaStream_t stream, bool cold,
    const std::function<void(const Candidate&)>& run) {
  constexpr float kWorthAnotherLook = 1.15F, kBoundByPowerMs = 0.1F;
  constexpr int kOfAFamily = 2;
  constexpr float kAloneMs = 20, kTimedMs = 4;  // at most; small products are timed long before
  struct Timed {
    Candidate candidate;
    std::vector<float> rounds;
    float ms = 0;
  };
  std::mt19937 order(0);
  Stopwatch stopwatch(stream, cold);
  std::vector<Timed> timed;
  std::exception_ptr failure;
  for (const auto& candidate : candidates) {
    try {
      run(candidate);
      timed.push_back({.candidate = candidate, .rounds = {}});
    } catch (const c10::Error&) {  // a kernel that cannot do it; others can
      failure = std::current_exception();
    }
  }
  if (timed.empty()) std::rethrow_exception(failure);
  const auto in_turns = [&](int rounds, int count, int alone) {
    for (auto& entry : timed) entry.rounds.clear();
    for (int round = 0; round < rounds; ++round) {
      std::ranges::shuffle(timed, order);
      for (auto& entry : timed) {
        const auto one = [&] { run(entry.candidate); };
        for (int i = 0; i < alone; ++i) one();
        entry.rounds.push_back(stopwatch.time(count, one));
      }
    }
    for (auto& entry : timed) {
      const auto middle = entry.rounds.begin() + static_cast<std::ptrdiff_t>(entry.rounds.size() / 2);
      std::ranges::nth_element(entry.rounds, middle);
      entry.ms = *middle;
    }
  };
  in_turns(3, 2, 0);
  std::ranges::sort(timed, {}, &Timed::ms);
  const float ms = std::max(timed.front().ms, 1e-3F);
  std::map<std::string, int> taken;
  std::vector<Timed> finalists;
  for (const auto& entry : timed) {
    if (entry.ms > kWorthAnotherLook * ms) break;
    if (++taken[family(entry.candidate)] <= kOfAFamily) finalists.push_back(entry);
  }
  timed = std::move(finalists);
  const int count = std::clamp(static_cast<int>(kTimedMs / ms), 2, 20);
  in_turns(5, count, cold ? 0 : ms > kBoundByPowerMs ? static_cast<int>(kAloneMs / ms) : count);
  return std::ranges::min_element(timed, {}, &Timed::ms)->candidate;
}

void print(const ProductKind& kind, const Candidate& choice) {
  static const bool wanted = std::getenv("TE_INT8_PRINT_CHOICES") != nullptr;
  if (!wanted) return;
  std::ostringstream line;
  line << "te_int8: " << kind.m << " x " << kind.n << " x " << kind.k << " to " << kind.out << " on cuda:" << kind.device
       << ": ";
  if (const auto* gemm = std::get_if<const kernels::Gemm*>(&choice)) {
    line << "cutlass " << description(**gemm);
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
  if (status != cudaStreamCaptureStatusNone || candidates.size() == 1) return candidates.front();
  // Others' launches would disturb the timing; and who waited for them, while they wait for a stream that waits for him,
  // would wait for ever.
  static auto* timing = new std::mutex;
  const std::unique_lock lock(*timing, std::try_to_lock);
  if (!lock.owns_lock()) return candidates.front();
  if (const auto before = chosen(kind)) return *before;
  const c10::cuda::CUDAStreamCaptureModeGuard beside_captures(cudaStreamCaptureModeRelaxed);  // of other threads
  const auto choice = fastest(candidates, stream, kind.m <= kDecodingRows, run);
  print(kind, choice);
  auto& [mutex, by_kind] = choices();
  const std::lock_guard storing(mutex);
  by_kind.emplace(kind, choice);
  return choice;
}

}  // namespace te_int8::cuda
