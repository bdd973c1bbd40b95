// Sizes that change from call to call, put into buckets.
#pragma once

#include <bit>
#include <cstdint>

namespace te_int8 {

/// The bucket of a size: those up to a quarter apart share what was found out by timing, so that changing batches are not timed
/// for ever.
inline int64_t bucket(int64_t size) {
  if (size <= 4) return size;
  const auto step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(size - 1))) / 4;
  return (size + step - 1) / step * step;
}

}  // namespace te_int8
