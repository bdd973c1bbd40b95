// The back end "cpu": te_int8's operations on CPU tensors, by the kernels of kernels.h. This file splits
// the work among LibTorch's threads; the kernels know neither threads nor tensors.
#include <algorithm>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

#include <ATen/Parallel.h>
#include <torch/library.h>
#include <torch/types.h>

#include <te_int8/backends.h>
#include <te_int8/detail/packed_codes.h>
#include <te_int8/number_format.h>

#include "isa.h"
#include "memory.h"

namespace te_int8::inline v0 {
namespace {

using at::Tensor;
using Codes = std::tuple<Tensor, Tensor>;
using OptionalTensor = std::optional<Tensor>;
using cpu::kernels;

static_assert(detail::kPanelRows == cpu::kPanel);

/// Asked for the reference, and for nothing else, these kernels leave a tensor of the CPU to it.
bool leave_to_reference() { return detail::current_backend() == detail::Backend::Reference; }

constexpr int64_t kWorkPerTask = 32768;  ///< elements, below which a thread is not worth starting
constexpr int64_t kBlock = 96;           ///< rows of x that are multiplied while they are in the cache

cpu::Type type_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return cpu::Type::Float;
    case at::kBFloat16: return cpu::Type::BFloat16;
    case at::kHalf: return cpu::Type::Half;
    case at::kDouble: return cpu::Type::Double;
    default: return cpu::Type::Int32;
  }
}

/// Nearest even, and denormals kept, as the number format has it, whatever a thread has set for itself (a rounding
/// mode, torch::set_flush_denormal).
class DefaultFloats {
 public:
#if defined(__x86_64__)
  DefaultFloats() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloats() { _mm_setcsr(saved_); }
#else
  DefaultFloats() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&saved_); }
#endif
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

/// f(begin, end) for parts of [0, count), on LibTorch's threads.
template <typename F>
void in_parallel(int64_t count, int64_t grain, const F& f) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const DefaultFloats floats;
    f(begin, end);
  });
}

int64_t grain(int64_t work_of_one) {
  return std::max<int64_t>(1, kWorkPerTask / std::max<int64_t>(1, work_of_one));
}

/// Rows of a contiguous tensor as floats, one after another.
class FloatRows {
 public:
  FloatRows(const Tensor& x, int64_t width)
      : data_(static_cast<const char*>(x.const_data_ptr())),
        type_(type_of(x.scalar_type())),
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

// ---- The product ------------------------------------------------------------------------------------

/// Values for all columns of all panels, so that kernels read whole vectors; empty where there are none.
std::vector<float> by_column(const OptionalTensor& values, int64_t columns) {
  if (!values) return {};
  const auto dense = values->to(at::kFloat).contiguous();
  const auto* from = dense.const_data_ptr<float>();
  std::vector<float> padded(static_cast<std::size_t>(cpu::panels(columns) * cpu::kPanel), 0.0F);
  if (dense.numel() == 1) {
    std::fill_n(padded.begin(), columns, *from);
  } else {
    std::copy_n(from, columns, padded.begin());
  }
  return padded;
}

/// Rows of x, padded with zero codes to whole fours and spread so that they do not fall into the same
/// sets of the cache, with their sums.
class Block {
 public:
  Block(const int8_t* x, int64_t depth)
      : x_(x), depth_(depth), padded_(cpu::padded_depth(depth)), ld_(padded_ + 64) {}

  void load(int64_t first, int64_t rows) {
    codes_.resize(static_cast<std::size_t>(rows * ld_));
    sums_.resize(static_cast<std::size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) {
      auto* to = codes_.data() + row * ld_;
      std::copy_n(x_ + (first + row) * depth_, depth_, to);
      std::fill(to + depth_, to + padded_, int8_t{0});
      sums_[static_cast<std::size_t>(row)] = kernels().row_sum(to, padded_);
    }
  }
  void multiply(int64_t rows, const uint8_t* panel, int64_t columns, const cpu::Epilogue& epilogue) const {
    kernels().multiply(codes_.data(), ld_, sums_.data(), rows, panel, padded_, columns, epilogue);
  }

 private:
  const int8_t* x_;
  int64_t depth_, padded_, ld_;
  std::vector<int8_t> codes_;
  std::vector<int32_t> sums_;
};

Tensor scaled_mm(
    const Tensor& a, const Tensor& b, const OptionalTensor& a_scales, const OptionalTensor& b_scales,
    const OptionalTensor& bias, std::optional<at::ScalarType> out_dtype) {
  const auto dtype = detail::check_scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  if (leave_to_reference() || a.size(1) > detail::kMaxInt32Depth) {
    return reference::scaled_mm(a, b, a_scales, b_scales, bias, out_dtype);
  }
  return detail::scaled_mm_packed(
      a, detail::pack_codes(b), b.size(0), a_scales, b_scales, bias, dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(te_int8, CPU, m) {
  m.impl("quantize_rows", TORCH_FN(quantize_rows));
  m.impl("quantize_columns", TORCH_FN(quantize_columns));
  m.impl("requantize_columns", TORCH_FN(requantize_columns));
  m.impl("scaled_mm", TORCH_FN(scaled_mm));
}

namespace detail {

bool can_pack(const Tensor& codes) {
  return codes.is_cpu() && codes.size(1) <= kMaxInt32Depth && !leave_to_reference();
}

Tensor pack_codes(const Tensor& codes) {
  const int64_t columns = codes.size(0), depth = codes.size(1), count = cpu::panels(columns);
  const auto dense = codes.contiguous();
  auto packed = cpu::empty({count, cpu::panel_bytes(depth)}, at::kByte);
  const auto* from = dense.const_data_ptr<int8_t>();
  auto* to = packed.data_ptr<uint8_t>();
  in_parallel(count, grain(cpu::panel_bytes(depth)), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * cpu::kPanel;
      cpu::kernels().pack(
          from + first * depth, depth, std::min(cpu::kPanel, columns - first), depth,
          to + panel * cpu::panel_bytes(depth));
    }
  });
  return packed;
}

Tensor scaled_mm_packed(
    const Tensor& a, const Tensor& packed, int64_t columns, const OptionalTensor& a_scales,
    const OptionalTensor& b_scales, const OptionalTensor& bias, at::ScalarType dtype) {
  const int64_t rows = a.size(0), depth = a.size(1);
  auto result = cpu::empty({rows, columns}, dtype);
  if (result.numel() == 0) return result;
  const auto x = a.contiguous();
  const auto x_scales = a_scales ? a_scales->contiguous() : Tensor();
  const auto w_scales = by_column(b_scales, columns), added = by_column(bias, columns);
  const auto* panels = packed.const_data_ptr<uint8_t>();
  const int64_t panel_count = cpu::panels(columns);
  const auto type = type_of(dtype);
  auto* out = static_cast<char*>(result.mutable_data_ptr());
  const auto element = static_cast<int64_t>(result.element_size());

  // Divided by rows x panels, as the last block may be a small one; a thread takes the products of a block
  // and a panel that begin in its part.
  in_parallel(
      rows * panel_count, grain(cpu::kPanel * (depth + 32) / 64), [&](int64_t begin, int64_t end) {
        Block block(x.const_data_ptr<int8_t>(), depth);
        for (int64_t first = begin / panel_count / kBlock * kBlock; first * panel_count < end; first += kBlock) {
          const int64_t count = std::min(kBlock, rows - first), origin = first * panel_count;
          const auto panel_at = [&](int64_t place) {
            return std::clamp<int64_t>((place - origin + count - 1) / count, 0, panel_count);
          };
          const int64_t first_panel = begin <= origin ? 0 : panel_at(begin), last_panel = panel_at(end);
          if (first_panel < last_panel) block.load(first, count);
          for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const int64_t column = panel * cpu::kPanel;
            const cpu::Epilogue epilogue{
                .type = type,
                .out = out + (first * columns + column) * element,
                .ld = columns,
                .x_scales = x_scales.defined()
                                ? x_scales.const_data_ptr<float>() + (x_scales.size(0) == 1 ? 0 : first)
                                : nullptr,
                .x_step = x_scales.defined() && x_scales.size(0) != 1 ? 1 : 0,
                .w_scales = w_scales.empty() ? nullptr : w_scales.data() + column,
                .bias = added.empty() ? nullptr : added.data() + column};
            block.multiply(
                count, panels + panel * cpu::panel_bytes(depth), std::min(cpu::kPanel, columns - column),
                epilogue);
          }
        }
      });
  return result;
}

}  // namespace detail
}  // namespace te_int8::inline v0
