// What a thread holds of a row that a block makes codes of: two or four loads of 16 bytes, one store.
#pragma once

#include <cstring>
#include <type_traits>

#include "numbers.cuh"

namespace te_int8::kernels {

constexpr int kPiece = 16;

/// What the code of x stands for.
__device__ inline float value_of_its_code(float value, Step step) {
  const float code = __fadd_rn(__uint_as_float(code_of(value, step.inverse)), -12582912.0F);
  return __fmul_rn(step.inverse == 0.0F ? 0.0F : code, step.scale);
}

/// A word that holds these values, rounded to T, which has 16 bits.
template <typename T>
__device__ inline uint32_t word_of_values(float low, float high) {
  const auto two = [&] {
    if constexpr (std::is_same_v<T, __half>) {
      return __floats2half2_rn(low, high);
    } else {
      return __floats2bfloat162_rn(low, high);
    }
  }();
  uint32_t word = 0;
  memcpy(&word, &two, sizeof(word));
  return word;
}

/// The 16 values of one thread, of a run of 16 * `threads` values that begins at x: consecutive ones where
/// memory is aligned, else every `threads`-th, so that neighbours read neighbours.
template <typename T, bool kAligned>
class Piece {
 public:
  __device__ void load(const T* x, int64_t count, int threads, int thread) {
    if constexpr (kAligned) {
      if (thread * kPiece < count) {
        const auto* from = reinterpret_cast<const uint4*>(x) + thread * kWords;
#pragma unroll
        for (int i = 0; i < kWords; ++i) held_[i] = from[i];
      } else {
#pragma unroll
        for (int i = 0; i < kWords; ++i) held_[i] = make_uint4(0, 0, 0, 0);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        const int64_t at = static_cast<int64_t>(i) * threads + thread;
        held_[i] = at < count ? to_float(x[at]) : 0.0F;
      }
    }
  }

  /// Raises `maxima`, magnitudes as bits, to those of the values: of as many in a word as there is room for.
  template <int kCount>
  __device__ void raise(uint32_t (&maxima)[kCount]) const {
    static_assert(kAligned && kCount == 4 * kWords);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t word = word_of(held_[i / 4], i % 4);
      if constexpr (sizeof(T) == 4) {
        maxima[i] = max(maxima[i], word & 0x7fffffffU);
      } else {
        maxima[i] = __vmaxu2(maxima[i], word & 0x7fff7fffU);
      }
    }
  }

  /// The largest magnitude, as bits of a float.
  __device__ uint32_t amax() const {
    if constexpr (kAligned && sizeof(T) == 2) {
      uint32_t two = 0;
#pragma unroll
      for (int i = 0; i < 4 * kWords; ++i) two = __vmaxu2(two, word(i) & 0x7fff7fffU);
      const uint4 words = make_uint4(two, 0, 0, 0);
      return max(magnitude(value_of<T>(words, 0)), magnitude(value_of<T>(words, 1)));
    } else {
      uint32_t result = 0;
#pragma unroll
      for (int i = 0; i < kPiece; ++i) result = max(result, magnitude(value(i)));
      return result;
    }
  }
  /// The smallest magnitude of a bf16 that is not zero, likewise; without any, more than all.
  __device__ uint32_t least_but_zero() const {
    static_assert(kAligned && std::is_same_v<T, __nv_bfloat16>);
    constexpr uint32_t kSigns = 0x80008000U;
    uint32_t two = 0xffffffffU;  // of each magnitude less 1, so that zeros are the largest
#pragma unroll
    for (int i = 0; i < 4 * kWords; ++i) two = __vminu2(two, ((word(i) | kSigns) - 0x00010001U) ^ kSigns);
    return (min(min(two & 0xffffU, two >> 16), 0x7fffU) + 1) << 16;
  }

  /// Each value becomes f(value, i), rounded to T.
  template <typename F>
  __device__ void map(const F& f) {
    map_words([&](uint32_t, int i) {
      if constexpr (sizeof(T) == 4) {
        return __float_as_uint(f(value(i), i));
      } else {
        return word_of_values<T>(f(value(2 * i), 2 * i), f(value(2 * i + 1), 2 * i + 1));
      }
    });
  }
  /// Each word of one or two values becomes f(word, i).
  template <typename F>
  __device__ void map_words(const F& f) {
    static_assert(kAligned);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      held_[w] = make_uint4(
          f(held_[w].x, 4 * w), f(held_[w].y, 4 * w + 1), f(held_[w].z, 4 * w + 2), f(held_[w].w, 4 * w + 3));
    }
  }
  __device__ uint32_t word(int i) const { return word_of(held_[i / 4], i % 4); }

  __device__ void store_values(T* to, int64_t count, int thread) const {
    static_assert(kAligned);
    if (thread * kPiece >= count) return;
#pragma unroll
    for (int w = 0; w < kWords; ++w) reinterpret_cast<uint4*>(to)[thread * kWords + w] = held_[w];
  }

  __device__ float value(int i) const {
    if constexpr (kAligned) {
      return value_of<T>(held_[i * kWords / kPiece], i % (kPiece / kWords));
    } else {
      return held_[i];
    }
  }

  /// Where kOnceOnly, past what the L2 cache holds.
  template <bool kOnceOnly = false>
  __device__ void store(int8_t* codes, int64_t count, int threads, int thread, float inverse) const {
    uint32_t packed[kPiece / 4];
#pragma unroll
    for (int i = 0; i < kPiece / 4; ++i) {
      packed[i] = pack(
          code_of(value(4 * i), inverse), code_of(value(4 * i + 1), inverse),
          code_of(value(4 * i + 2), inverse), code_of(value(4 * i + 3), inverse), inverse);
    }
    if constexpr (kAligned) {
      if (thread * kPiece < count) {
        const uint4 words = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        auto* to = reinterpret_cast<uint4*>(codes) + thread;
        if constexpr (kOnceOnly) {
          __stcs(to, words);
        } else {
          *to = words;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        const int64_t at = static_cast<int64_t>(i) * threads + thread;
        if (at < count) codes[at] = static_cast<int8_t>(packed[i / 4] >> 8 * (i % 4));
      }
    }
  }

 private:
  static constexpr int kWords = kPiece * static_cast<int>(sizeof(T)) / 16;

  std::conditional_t<kAligned, uint4[kWords], float[kPiece]> held_;
};

}  // namespace te_int8::kernels
