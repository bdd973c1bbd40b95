// Which of two ways to compute a layer is the faster one, in INT8 or in full precision: for Recipe::allow_full_precision.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <te_int8/config.h>
#include <te_int8/modules.h>

namespace te_int8::inline v0::detail {

/// What makes two calls alike: the same way is the faster one for both.
struct CallKind {
  Operation operation;
  c10::Device device;
  std::vector<at::ScalarType> dtypes;  ///< of x, the weight and the result
  int64_t rows;                        ///< of x; of a convolution samples. Those up to a quarter apart count as equal
  std::vector<int64_t> sizes;          ///< whatever else the time depends on, in an order of the operation's own
};

/// Whether full precision computes calls of this kind in less time, by 5 % at least. The first of a kind is timed both ways, in
/// turns: three to 23 calls of each, some 100 ms if one is not longer. The answer holds for the process and its number of threads.
/// No where another thread is timing, where full precision raises an error, and on other devices than the CPU.
/// TE_INT8_PRINT_CHOICES=1 prints what was found.
TE_INT8_API bool is_faster_in_full_precision(
    const CallKind& kind, const std::function<void()>& in_int8, const std::function<void()>& in_full_precision);

/// For tests: while it lives, the answer of all threads, without timing. One at a time.
class TE_INT8_API ForcedAnswer {
 public:
  explicit ForcedAnswer(bool in_full_precision);
  ~ForcedAnswer();
  ForcedAnswer(const ForcedAnswer&) = delete;
  ForcedAnswer& operator=(const ForcedAnswer&) = delete;
};

}  // namespace te_int8::inline v0::detail
