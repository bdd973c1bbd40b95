// The back end "cublaslt": integer products by cuBLASLt, which leaves int32 sums.
#pragma once

#include <torch/types.h>

namespace te_int8::cuda {

/// a [M,K] x b [N,K] -> int32 [M,N], each row at least N elements apart; K <= detail::kMaxInt32Depth. Any sizes and
/// strides: what cuBLASLt cannot read as it lies is copied, and padded with zeros.
at::Tensor cublaslt_sums(const at::Tensor& a, const at::Tensor& b);

}  // namespace te_int8::cuda
