// Kernels that start while the one before them still runs (kernels/pdl.cuh), one after the other on one stream: each must wait for
// what it reads, and for those that still read what it writes.
#include <algorithm>
#include <utility>
#include <vector>

#include "../../kernels/activations.h"
#include "../../kernels/gemm.h"
#include "../../kernels/linear.h"
#include "../../kernels/quantize.h"
#include "host_reference.h"

using namespace te_int8_kernel_test;

namespace {

constexpr int64_t kWidth = 1024;
constexpr int kLayers = 6;

/// Layers of kWidth to kWidth in bf16, of which all share the memory for codes.
class Chain {
 public:
  explicit Chain(int64_t rows)
      : rows_(rows), x_(as<__nv_bfloat16>(random_matrix<__nv_bfloat16>(rows, kWidth, /*strange=*/false))),
        even_(size_of(rows, kWidth)), odd_(size_of(rows, kWidth)), weights_(random_codes(kWidth * kWidth)),
        b_scales_(std::vector<float>(kWidth, 1.0F / 2300)),  // so that values do not grow
        codes_(size_of(rows, kWidth)), scales_(size_of(rows, 1)), inverses_(size_of(rows, 1)) {}

  /// What the last layer gives, of products alone or of products and activations in turn. `waits`: for each kernel to end before
  /// the next is launched.
  template <typename Multiply>
  std::vector<float> run(const Multiply& multiply, bool with_activations, bool waits) const {
    spoil(even_, odd_, codes_, scales_, inverses_);
    check(cudaDeviceSynchronize());
    const auto next = [&](cudaError_t error) {
      check(error);
      if (waits) check(cudaDeviceSynchronize());
    };
    const __nv_bfloat16* x = x_.get();
    for (int layer = 0; layer < kLayers; ++layer) {
      auto* y = result_of(layer).get();
      if (with_activations && layer % 2 == 1) {
        next(activate(
            Activation::Gelu, Type::BFloat16, x, rows_, kWidth, sms_, {y, codes_.get(), scales_.get(), inverses_.get()}, nullptr));
      } else {
        multiply(x, /*has_codes=*/with_activations && layer > 0, y, next);
      }
      x = y;
    }
    check(cudaDeviceSynchronize());
    return floats(result_of(kLayers - 1).read());
  }

  /// Codes of x, unless they are there, and their product into y.
  template <typename Next>
  void multiply(const Gemm& gemm, const __nv_bfloat16* x, bool has_codes, __nv_bfloat16* y, const Next& next) const {
    if (!has_codes) next(quantize_rows(Type::BFloat16, x, rows_, kWidth, codes_.get(), scales_.get(), nullptr));
    const Epilogue epilogue{scales_.get(), 1, b_scales_.get(), 1, nullptr, Type::Float};
    next(gemm.launch({codes_.get(), weights_.get(), rows_, kWidth, kWidth, epilogue, Type::BFloat16, y}, gemm, sms_, nullptr));
  }
  /// The same by one kernel, which makes the codes.
  template <typename Next>
  void multiply(const __nv_bfloat16* x, __nv_bfloat16* y, const Next& next) const {
    const Epilogue epilogue{nullptr, 0, b_scales_.get(), 1, nullptr, Type::Float};
    next(linear_of_few_rows({x, Type::BFloat16, weights_.get(), rows_, kWidth, kWidth, epilogue, Type::BFloat16, y}, sms_, nullptr));
  }

 private:
  const Device<__nv_bfloat16>& result_of(int layer) const { return layer % 2 == 0 ? even_ : odd_; }

  int64_t rows_;
  int sms_ = multiprocessors();
  Device<__nv_bfloat16> x_, even_, odd_;
  Device<int8_t> weights_;
  Device<float> b_scales_;
  Device<int8_t> codes_;
  Device<float> scales_, inverses_;
};

/// The same bits, whether kernels wait on the host or not.
template <typename Multiply>
void require_same_without_waiting(const Chain& chain, const Multiply& multiply) {
  for (const bool with_activations : {false, true}) {
    const auto expected = chain.run(multiply, with_activations, /*waits=*/true);
    for (int again = 0; again < 3; ++again) REQUIRE(same(chain.run(multiply, with_activations, /*waits=*/false), expected));
  }
}

}  // namespace

TEST_CASE("kernels: layers in a chain, each begun before the last has ended", "[kernels]") {
  SKIP_WITHOUT_GPU();
  int chains = 0;
  for (const int64_t rows : {7, 16, 64, 130, 1100}) {
    const Chain chain(rows);
    for (const auto& gemm : gemms()) {
      if (!runs_here(gemm, Type::BFloat16) || gemm.accumulates || gemm.windows) continue;
      if (rows < gemm.fewest_rows || rows > gemm.most_rows) continue;
      CAPTURE(rows, gemm.name, gemm.along_m, gemm.swizzle);
      require_same_without_waiting(chain, [&](const auto* x, bool has_codes, auto* y, const auto& next) {
        chain.multiply(gemm, x, has_codes, y, next);
      });
      ++chains;
    }
    if (rows > kFewRows || capability() > 90) continue;
    require_same_without_waiting(chain, [&](const auto* x, bool, auto* y, const auto& next) { chain.multiply(x, y, next); });
  }
  CHECK(chains > 0);
}
