// Activations and layer normalization with the codes of what they give: those that quantize_rows would make of it, bit for
// bit.
#pragma once

#include "types.h"

namespace te_int8::kernels {

enum class Activation {
  Gelu,      ///< x * Phi(x)
  GeluTanh,  ///< the same with tanh for erf (Hendrycks and Gimpel 2016, arXiv:1606.08415)
  Relu,
  Silu,  ///< x * sigmoid(x)
};

/// What is wanted of y [rows, width]: codes [rows, width] and scales [rows], and unless null y itself; where `codes` is null,
/// what they would stand for, in y.
struct Made {
  void* y;
  int8_t* codes;
  float* scales;
};

/// Whether the kernels below take rows of this width: of whole 16 bytes, and so short that a block's registers hold one
/// (32,768 values of bf16, 24,576 of fp16, 16,384 floats). Addresses are aligned to 16 bytes.
bool fits_activations(Type type, int64_t width);

/// y = f(x) [rows, width] on a GPU of `sms` multiprocessors, computed in fp32 and rounded to `type`.
cudaError_t activate(
    Activation f, Type type, const void* x, int64_t rows, int64_t width, int sms, const Made& made, cudaStream_t stream);

/// The same of x that is held as codes by row: float(code) * scale, rounded to `type`.
cudaError_t activate_codes(
    Activation f, Type type, const int8_t* x_codes, const float* x_scales, int64_t rows, int64_t width, int sms,
    const Made& made, cudaStream_t stream);

/// What a layer normalization was given and found out.
struct LayerNorm {
  Type type;                 ///< of x, gamma, beta and y
  const void* x;             ///< [rows, width]
  const float *mean, *rstd;  ///< [rows]
  const void *gamma, *beta;  ///< [width]; null: 1 and 0
  int64_t rows, width;
};

/// y = gamma * (rstd * (x - mean)) + beta, computed in fp32 and rounded to `type`.
cudaError_t layer_norm(const LayerNorm& norm, const Made& made, cudaStream_t stream);

}  // namespace te_int8::kernels
