// Which kernel computes a product: the fastest of those timed when a shape comes first.
#pragma once

#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include <te_int8/backends.h>

#include "../../kernels/gemm.h"
#include "fastest.h"

namespace te_int8::cuda {

/// What makes two products alike: the same kernels can compute them, about equally well.
struct ProductKind {
  int device;
  int64_t m, n, k;  ///< m and k in buckets (src/bucket.h): in the product for a weight's gradient, k is the batch
  at::ScalarType out;
  detail::Backend backend;
  bool fits;  ///< whether kernels::fits_gemms
  bool accumulate = false;
  bool windows = false;
  auto operator<=>(const ProductKind&) const = default;
};

/// That of a product by the current back end.
ProductKind kind_of(const kernels::Product& product, const at::Tensor& out, bool fits);

/// What was chosen for products of this kind before.
std::optional<Candidate> chosen(const ProductKind& kind);

/// The fastest of `candidates`, from now on for all products of this kind; `run` launches one of them. On a stream that is
/// being captured into a graph, and while another thread is timing, the first of them, for this once. Prints what it has
/// chosen to stderr where TE_INT8_PRINT_CHOICES is set.
Candidate choose(
    const ProductKind& kind, cudaStream_t stream, const std::vector<Candidate>& candidates,
    const std::function<void(const Candidate&)>& run);

/// Computes a product, whose product.out is that of `out`, by the best of our kernels; false where there is none for it, and by
/// the back end "cublaslt".
bool multiply_by_kernel(const kernels::Product& product, const at::Tensor& out, cudaStream_t stream);

/// The kernels for the current device that are worth a try, the best guess first. Where TE_INT8_KERNELS is set, only those
/// with that in their descriptions, and it is an error if a plain product has none.
std::vector<const kernels::Gemm*> gemms_for(const kernels::Product& product);

/// Whether TE_INT8_KERNELS is set.
bool kernels_are_forced();

/// Whether it is not set, or to a part of this name.
bool may_be_chosen(std::string_view kernel);

}  // namespace te_int8::cuda
