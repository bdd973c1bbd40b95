#include "choose.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <tuple>
#include <utility>

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include "../bucket.h"
#include "device.h"
#include "fastest.h"

namespace te_int8::cuda {

ProductKind kind_of(const kernels::Product& product, const at::Tensor& out, bool fits) {
  return {
      .device = out.device().index(),
      .m = bucket(product.m),
      .n = product.n,
      .k = bucket(product.k),
      .out = out.scalar_type(),
      .backend = detail::current_backend(),
      .fits = fits,
      .accumulate = product.accumulate,
      .windows = product.windows != nullptr};
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
  const bool windows = product.windows != nullptr;
  for (const auto& gemm : kernels::gemms()) {
    if (may_compute(gemm, device) && gemm.type == product.type && gemm.accumulates == product.accumulate &&
        gemm.windows == windows && gemm.fewest_rows <= product.m && product.m <= gemm.most_rows) {
      result.push_back(&gemm);
    }
  }
  // Of all single ones the best over many shapes (docs/design.md); the others in an order of their own, not the linker's.
  const std::string guess = !windows         ? "pingpong 128x128 c2x1"
                            : product.n > 64 ? "windows pingpong 128x128 c1x1"
                                             : "windows cooperative 256x64 c1x1";
  const auto rank = [&](const kernels::Gemm* gemm) {
    const std::string name = gemm->name;
    const bool best = name == guess && !gemm->along_m && gemm->swizzle == (windows ? 1 : 8);
    return std::tuple(!best, name, gemm->along_m, gemm->swizzle);
  };
  std::ranges::sort(result, {}, rank);
  TORCH_CHECK_VALUE(
      !result.empty() || product.accumulate || windows || forced_kernels() == nullptr,
      "te_int8::scaled_mm: expected TE_INT8_KERNELS to be a part of the description of a kernel for ", product.m, " x ",
      product.n, " x ", product.k, " on this GPU, got '", forced_kernels(), "'");
  return result;
}

namespace {

void print(const ProductKind& kind, const Candidate& choice) {
  static const bool wanted = std::getenv("TE_INT8_PRINT_CHOICES") != nullptr;
  if (!wanted) return;
  std::ostringstream line;
  line << "te_int8: " << (kind.windows ? "windows " : "") << kind.m << " x " << kind.n << " x " << kind.k
       << (kind.accumulate ? " added to " : " to ") << kind.out << " on cuda:" << kind.device << ": ";
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

bool multiply_by_kernel(const kernels::Product& product, const at::Tensor& out, cudaStream_t stream) {
  if (detail::current_backend() == detail::Backend::Cublaslt || !kernels::fits_gemms(product)) return false;
  const auto gemms = gemms_for(product);
  if (gemms.empty()) return false;
  const auto launch = [&](const Candidate& candidate, const kernels::Product& of) {
    const auto& gemm = *std::get<const kernels::Gemm*>(candidate);
    C10_CUDA_CHECK(gemm.launch(of, gemm, multiprocessors(), stream));
  };
  const auto kind = kind_of(product, out, /*fits=*/true);
  auto best = chosen(kind);
  if (!best) {
    auto timed = product;
    at::Tensor scratch;  // what is timed would add many times
    best = choose(kind, stream, {gemms.begin(), gemms.end()}, [&](const Candidate& candidate) {
      if (product.accumulate && !scratch.defined()) {
        scratch = at::zeros_like(out);
        timed.out = scratch.mutable_data_ptr();
      }
      launch(candidate, timed);
    });
  }
  launch(*best, product);
  return true;
}

}  // namespace te_int8::cuda
