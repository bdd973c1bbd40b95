// Kernels that make codes, and values from codes, as te_int8/number_format.h defines them. Matrices are contiguous; pointers of any
// alignment are computed, those of 16 bytes (and sizes of whole 16 bytes) fast. Any size, zero included. Each
// function launches on `stream` and returns the launches' error.
#pragma once

#include <cstddef>

#include "types.h"

namespace te_int8::kernels {

/// x [rows, width] -> codes [rows, width], scales [rows]. One pass over memory for rows that fit into the
/// registers of a block (aligned: 65,536 values of 2 bytes, 32,768 floats; else 16,384), or of eight on GPUs with
/// clusters; else two.
cudaError_t quantize_rows(
    Type type, const void* x, int64_t rows, int64_t width, int8_t* codes, float* scales, cudaStream_t stream);

/// x [count] -> codes [count], scales [1].
cudaError_t quantize_tensor(
    Type type, const void* x, int64_t count, int8_t* codes, float* scales, cudaStream_t stream);

/// Bytes of memory that quantize_columns and requantize_columns need beside their results.
std::size_t quantize_columns_workspace(int64_t columns);

/// x [rows, columns] -> codes of the transpose [columns, rows], scales [columns].
cudaError_t quantize_columns(
    Type type, const void* x, int64_t rows, int64_t columns, void* workspace, int8_t* codes_t, float* scales_t,
    cudaStream_t stream);

/// Bytes that column_sums needs.
std::size_t column_sums_workspace(int64_t rows, int64_t columns);

/// The sums of the columns of x [rows, columns] in fp32: [columns]. Their order, and so their rounding, is the same at every
/// call.
cudaError_t column_sums(
    Type type, const void* x, int64_t rows, int64_t columns, void* workspace, float* sums, cudaStream_t stream);

/// Bytes that quantize_rows_and_columns needs.
std::size_t quantize_rows_and_columns_workspace(int64_t rows, int64_t columns, bool with_sums);

/// What quantize_rows and quantize_columns give, both, and where the matrix is large in less time: it is read twice, where
/// they read it three times if it does not fit into clusters. Also what column_sums gives, unless `sums` is null.
cudaError_t quantize_rows_and_columns(
    Type type, const void* x, int64_t rows, int64_t columns, int sms, void* workspace, int8_t* codes, float* scales,
    int8_t* codes_t, float* scales_t, float* sums, cudaStream_t stream);

/// The same as quantize_columns of x whose columns have these largest magnitudes, as bits of floats; x is aligned, and `columns`
/// whole 16 bytes. Also column_sums(x), unless `sums` is null or there are no rows, which needs column_sums_workspace().
cudaError_t quantize_columns_with_maxima(
    Type type, const void* x, int64_t rows, int64_t columns, const uint32_t* amax, void* workspace, int8_t* codes_t,
    float* scales_t, float* sums, cudaStream_t stream);

/// The same as quantize_columns of codes [rows, columns] that stand for code * scale; row_scales [rows], or [1] where `one_scale`.
cudaError_t requantize_columns(
    const int8_t* codes, const float* row_scales, bool one_scale, int64_t rows, int64_t columns, void* workspace,
    int8_t* codes_t, float* scales_t, cudaStream_t stream);

/// Values from codes [rows, width]: float(code) * scale in fp32, rounded once to `type`; scales [rows], or [1] where
/// `one_scale`.
cudaError_t dequantize_rows(
    const int8_t* codes, const float* scales, bool one_scale, int64_t rows, int64_t width, Type type, void* out,
    cudaStream_t stream);

}  // namespace te_int8::kernels
