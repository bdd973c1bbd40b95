// The back end "cublaslt": integer products by cuBLASLt, which leaves int32 sums.
#pragma once

#include <memory>
#include <vector>

#include <cublasLt.h>
#include <torch/types.h>

namespace te_int8::cuda {

/// What cuBLASLt's integer kernels want of K and N, in elements, and of addresses, in bytes; the kernels of
/// kernels/gemm.h want the same of K.
inline constexpr int64_t kAlignment = 16;

inline int64_t padded(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

/// [R,K] codes with at least `rows` rows of whole kAlignment codes, zeros beyond its own: `codes` itself where it
/// is so already.
at::Tensor aligned_codes(const at::Tensor& codes, int64_t rows);

/// One way of cuBLASLt to compute a product.
using Algorithm = cublasLtMatmulAlgo_t;

/// a [M,K] x b [N,K] of aligned codes -> int32 [M,N], with padded(N) elements from row to row.
class CublasltProduct {
 public:
  CublasltProduct(const at::Tensor& a, const at::Tensor& b);
  ~CublasltProduct();
  CublasltProduct(const CublasltProduct&) = delete;
  CublasltProduct& operator=(const CublasltProduct&) = delete;

  /// At most `most` of them, cuBLASLt's favourite first. Raises where there is none.
  std::vector<Algorithm> algorithms(int most) const;
  /// Whether one that was found for another product will do for this.
  bool can_use(const Algorithm& algorithm) const;
  at::Tensor sums(const Algorithm& algorithm) const;

 private:
  struct Descriptors;
  at::Tensor a_, b_;
  int64_t columns_;
  std::unique_ptr<Descriptors> descriptors_;
};

}  // namespace te_int8::cuda
