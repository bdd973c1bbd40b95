// mma.m16n8k32 on codes.
//
// A sum does not mind in which order its terms come, so a thread loads 16 consecutive codes of K, where the instruction's
// layout has four groups of four from different places, and both operands are permuted alike.
#pragma once

#include <cstdint>

namespace te_int8::kernels {

/// Codes of K that a warp multiplies at once: 16 for each of the four threads that share a row.
constexpr int kMmaDepth = 64;

__device__ inline void mma_m16n8k32(
    int (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  __trap();  // code for an older GPU, on a later one: an error, not a wrong sum
#endif
}

/// Adds the product of 16 rows x kMmaDepth, whose rows lane / 4 and that + 8 are `upper` and `lower`, and 8 rows x
/// kMmaDepth, whose row lane / 4 is `other`. The sums of a thread: of rows lane / 4 (+ 8 from the third on) by rows
/// lane % 4 * 2 (+ 1 of every second).
__device__ inline void multiply_add(int (&sums)[4], const uint4& upper, const uint4& lower, const uint4& other) {
  mma_m16n8k32(sums, upper.x, lower.x, upper.y, lower.y, other.x, other.y);
  mma_m16n8k32(sums, upper.z, lower.z, upper.w, lower.w, other.z, other.w);
}

}  // namespace te_int8::kernels
