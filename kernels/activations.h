// Activations and layer normalization with the codes of what they give: those that quantize_rows would make of it, bit for
// bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace te_int8::kernels {

enum class Activation {
  Gelu,      ///< x * Phi(x)
  GeluTanh,  ///< the same with tanh for erf (Hendrycks and Gimpel 2016, arXiv:1606.08415)
  Relu,
  Silu,  ///< x * sigmoid(x)
};

/// What is made of y [rows, width]: itself, codes [rows, width], scales [rows] and their inverses [rows], by which values are
/// multiplied to become codes. Pointers may be null where a kernel says so.
struct Made {
  void* y;
  int8_t* codes;
  float* scales;
  float* inverses = nullptr;
};

/// Whether the kernels below take rows of this width: of whole 16 bytes, and so short that a block's registers hold one
/// (32,768 values of bf16, 24,576 of fp16, 16,384 floats). Addresses are aligned to 16 bytes.
bool fits_activations(Type type, int64_t width);

/// y = f(x) [rows, width] on a GPU of `sms` multiprocessors, computed in fp32 and rounded to `type`, and all of Made.
cudaError_t activate(
    Activation f, Type type, const void* x, int64_t rows, int64_t width, int sms, const Made& made, cudaStream_t stream);

/// The codes once more, or where `codes` is null y as they stand for it; scales and inverses are those that activate() left.
cudaError_t activate_again(
    Activation f, Type type, const void* x, int64_t rows, int64_t width, int sms, const Made& made, cudaStream_t stream);

/// The same of x that is held as codes by row: float(code) * scale, rounded to `type`. What is beyond the scales, which are those
/// of x itself, becomes the largest code.
cudaError_t activate_codes_again(
    Activation f, Type type, const int8_t* x_codes, const float* x_scales, int64_t rows, int64_t width, int sms,
    const Made& made, cudaStream_t stream);

/// dy and x [rows, width] of bf16, of a function f.
struct ActivationGradient {
  Activation f;
  const void* x;  ///< of Relu y; null: float(code) * scale of x_codes [rows, width] and x_scales [rows], rounded to bf16
  const int8_t* x_codes;
  const float* x_scales;
  void* dy;  ///< becomes dx = dy f'(x) as LibTorch computes it, bit for bit
  int64_t rows, width;
  int8_t* codes;  ///< what quantize_rows makes of dx: [rows, width]
  float* scales;  ///< [rows]
};

/// Whether the functions below, which take bf16 in rows of up to 16,384 values of whole 16 bytes, are worth it on a GPU of `sms`
/// multiprocessors: from 4,096 values on, and with so many rows that at least half of the GPU has work.
bool fits_activation_gradient(Type type, int64_t rows, int64_t width, int sms);

/// Bytes that activation_gradient needs for sums.
std::size_t activation_gradient_workspace(int64_t rows, int64_t width);

/// dx, its codes by row and, unless `sums` is null, column_sums(dx) [width], bit for bit.
cudaError_t activation_gradient(
    const ActivationGradient& gradient, int sms, void* workspace, float* sums, cudaStream_t stream);

/// dx, its codes by row and the bits of max |dx| of each column [width]; see quantize_columns_with_maxima.
cudaError_t activation_gradient_finding_maxima(
    const ActivationGradient& gradient, int sms, uint32_t* column_amax, cudaStream_t stream);

/// What a layer normalization was given and found out.
struct LayerNorm {
  Type type;                 ///< of x, gamma, beta and y
  const void* x;             ///< [rows, width]
  const float *mean, *rstd;  ///< [rows]
  const void *gamma, *beta;  ///< [width]; null: 1 and 0
  int64_t rows, width;
};

/// y = gamma * (rstd * (x - mean)) + beta, computed in fp32 and rounded to `type`; codes and scales, and y unless it is null.
/// Where `codes` is null, y as codes would stand for it.
cudaError_t layer_norm(const LayerNorm& norm, const Made& made, cudaStream_t stream);

}  // namespace te_int8::kernels
