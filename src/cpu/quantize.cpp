// The back end "cpu": operations that make codes, on CPU tensors, by the kernels of kernels.h.
#include <vector>

#include <torch/library.h>
#include <torch/types.h>

#include <te_int8/number_format.h>

#include "isa.h"
#include "memory.h"
#include "parallel.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using cpu::DefaultFloats, cpu::grain, cpu::in_parallel, cpu::kernels, cpu::kWorkPerTask, cpu::leave_to_reference;
using Codes = std::tuple<Tensor, Tensor>;

/// Rows of a contiguous tensor as floats, one after another.
class FloatRows {
 public:
  FloatRows(const Tensor& x, int64_t width)
      : data_(static_cast<const char*>(x.const_data_ptr())),
        type_(cpu::type_of(x.scalar_type())),
        row_bytes_(width * static_cast<int64_t>(x.element_size())),
        element_bytes_(static_cast<int64_t>(x.element_size())) {}

  /// `count` values from (row, first) on, converted into `buffer` where they are not floats.
  const float* get(int64_t row, int64_t first, int64_t count, std::vector<float>& buffer) const {
    const auto* from = data_ + row * row_bytes_ + first * element_bytes_;
    if (type_ == cpu::Type::Float) return reinterpret_cast<const float*>(from);
    buffer.resize(static_cast<std::size_t>(count));
    kernels().to_float(type_, from, count, buffer.data());
    return buffer.data();
  }

 private:
  const char* data_;
  cpu::Type type_;
  int64_t row_bytes_, element_bytes_;
};

/// One scale for all values.
Codes quantize_tensor(const Tensor& x) {
  const auto dense = x.contiguous();
  auto codes = cpu::empty(x.sizes(), at::kChar);
  auto scale = cpu::empty({1}, at::kFloat);
  const FloatRows values(dense, x.numel());
  auto* to = codes.data_ptr<int8_t>();
  const int64_t parts = (x.numel() + kWorkPerTask - 1) / kWorkPerTask;
  const auto for_each_part = [&](const auto& f) {  // f(part, where it begins, its values)
    in_parallel(parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> buffer;
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = part * kWorkPerTask, count = std::min(kWorkPerTask, x.numel() - first);
        f(part, first, values.get(0, first, count, buffer), count);
      }
    });
  };
  std::vector<uint32_t> amax(static_cast<std::size_t>(parts));
  for_each_part([&](int64_t part, int64_t, const float* from, int64_t count) {
    amax[static_cast<std::size_t>(part)] = kernels().amax_bits(from, count);
  });
  const uint32_t most = amax.empty() ? 0 : *std::ranges::max_element(amax);
  float inverse = 0;
  {
    const DefaultFloats floats;
    kernels().scales_of(&most, 1, scale.data_ptr<float>(), &inverse);
  }
  for_each_part([&](int64_t, int64_t first, const float* from, int64_t count) {
    kernels().codes_of(from, count, inverse, to + first);
  });
  return {codes, scale};
}

Codes quantize_rows(const Tensor& x, std::string_view granularity) {
  detail::check_float("quantize_rows", "x", x);
  const bool per_tensor = detail::is_per_tensor("quantize_rows", granularity);
  if (leave_to_reference() || x.dim() == 0) return reference::quantize_rows(x, granularity);
  if (per_tensor) return quantize_tensor(x);
  const auto dense = x.contiguous();
  const int64_t width = x.size(-1);
  const auto row_sizes = x.sizes().slice(0, x.dim() - 1);
  auto codes = cpu::empty(x.sizes(), at::kChar);
  auto scales = cpu::empty(row_sizes, at::kFloat);
  const FloatRows values(dense, width);
  auto* to = codes.data_ptr<int8_t>();
  auto* scale = scales.data_ptr<float>();
  in_parallel(scales.numel(), grain(width), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t row = begin; row < end; ++row) {
      kernels().quantize_row(values.get(row, 0, width, buffer), width, to + row * width, scale + row);
    }
  });
  return {codes, scales};
}

// ---- Columns ----------------------------------------------------------------------------------------

/// Quantizes the columns of a matrix [rows, columns] that `get(row, first, count, buffer)` gives as
/// floats, and transposes the codes: int8 [columns, rows], fp32 [columns].
template <typename Get>
Codes quantize_columns_of(int64_t rows, int64_t columns, const Get& get) {
  constexpr int64_t kTile = 64;
  auto codes = cpu::empty({columns, rows}, at::kChar);
  auto scales = cpu::empty({columns}, at::kFloat);
  auto* to = codes.data_ptr<int8_t>();
  auto* scale = scales.data_ptr<float>();
  const int64_t tiles = (columns + kTile - 1) / kTile;
  in_parallel(tiles, grain(kTile * rows), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    alignas(64) float inverse[kTile];
    alignas(64) int8_t tile[kTile][kTile];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kTile, count = std::min(kTile, columns - first);
      alignas(64) uint32_t amax[kTile] = {};
      for (int64_t row = 0; row < rows; ++row) {
        kernels().column_amax(get(row, first, count, buffer), count, amax);
      }
      kernels().scales_of(amax, count, scale + first, inverse);
      for (int64_t top = 0; top < rows; top += kTile) {
        const int64_t height = std::min(kTile, rows - top);
        for (int64_t i = 0; i < height; ++i) {
          kernels().quantize_by_column(get(top + i, first, count, buffer), inverse, count, tile[i]);
        }
        for (int64_t c = 0; c < count; ++c) {
          auto* out = to + (first + c) * rows + top;
          for (int64_t i = 0; i < height; ++i) out[i] = tile[i][c];
        }
      }
    }
  });
  return {codes, scales};
}

Codes quantize_columns(const Tensor& x) {
  detail::check_float("quantize_columns", "x", x);
  detail::check_dim("quantize_columns", "x", x, 2);
  if (leave_to_reference()) return reference::quantize_columns(x);
  const auto dense = x.contiguous();
  const FloatRows values(dense, x.size(1));
  return quantize_columns_of(
      x.size(0), x.size(1),
      [&](int64_t row, int64_t first, int64_t count, std::vector<float>& buffer) {
        return values.get(row, first, count, buffer);
      });
}

Codes requantize_columns(const Tensor& codes, const Tensor& scales) {
  detail::check_int8("requantize_columns", "codes", codes);
  detail::check_dim("requantize_columns", "codes", codes, 2);
  detail::check_scales("requantize_columns", "scales", scales, codes.size(0), codes);
  if (leave_to_reference()) return reference::requantize_columns(codes, scales);
  const auto dense = codes.contiguous(), dense_scales = scales.contiguous();
  const auto* from = dense.const_data_ptr<int8_t>();
  const auto* scale = dense_scales.const_data_ptr<float>();
  const int64_t width = codes.size(1), step = scales.size(0) == 1 ? 0 : 1;
  return quantize_columns_of(
      codes.size(0), width,
      [&](int64_t row, int64_t first, int64_t count, std::vector<float>& buffer) {
        buffer.resize(static_cast<std::size_t>(count));
        kernels().dequantize(from + row * width + first, scale[row * step], count, buffer.data());
        return static_cast<const float*>(buffer.data());
      });
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CPU, m) {
  m.impl("quantize_rows", TORCH_FN(quantize_rows));
  m.impl("quantize_columns", TORCH_FN(quantize_columns));
  m.impl("requantize_columns", TORCH_FN(requantize_columns));
}

}  // namespace te_int8::inline v0
