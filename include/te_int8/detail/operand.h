// Operands: X and W of a quantized layer as they are held between forward and backward.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include <torch/types.h>

#include <te_int8/detail/operand_form.h>
#include <te_int8/detail/packed_codes.h>
#include <te_int8/detail/stream_stamp.h>
#include <te_int8/operators.h>

namespace te_int8::inline v0::detail {

/// [N,C,*] -> [N, * x C]: a row per sample, channels last.
inline at::Tensor as_samples(const at::Tensor& x) {
  return x.movedim(1, -1).reshape({x.size(0), x.numel() / std::max<int64_t>(x.size(0), 1)});
}

/// Codes of x [N,C,*] as as_samples lays them out. They do not depend on the order, so x is read as it lies.
inline ops::Codes quantize_samples(const at::Tensor& x, const char* granularity) {
  if (!x.is_contiguous() || x.numel() == 0) return ops::quantize_rows(as_samples(x), granularity);
  const auto [codes, scales] = ops::quantize_rows(x.view({x.size(0), -1}), granularity);
  return {codes_with_channels_last(codes.view(x.sizes())).view({x.size(0), -1}), scales};
}

/// [*,C] -> [R,C].
inline at::Tensor as_rows(const at::Tensor& x) {
  if (x.dim() == 2) return x;
  const auto sizes = x.sym_sizes();
  c10::SymInt rows = 1;  // not -1 in the reshape: without columns it would be ambiguous
  for (const auto& size : sizes.slice(0, sizes.size() - 1)) rows = rows * size;
  return x.reshape_symint({rows, sizes.back()});
}

/// db = sum dy over all rows, [N].
inline at::Tensor bias_gradient(const at::Tensor& dy, at::ScalarType dtype) {
  const auto rows = as_rows(dy);
  if (rows.scalar_type() == at::kDouble) return rows.sum(0, /*keepdim=*/false, dtype);
  return ops::column_sums(rows).to(dtype);
}

inline std::optional<at::Tensor> as_optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// How codes by row came with an activation, and can be made again from what the activation's own backward holds anyway.
struct CodesSource {
  enum class Kind { Gelu, GeluTanh, Relu, Silu, LayerNorm };

  Kind kind;
  at::ScalarType dtype;  ///< of the activation
  /// Of LayerNorm x, mean, rstd, and gamma and beta or undefined ones. Of functions the scales and their inverses, which the codes
  /// had, and x, or its codes by row and scales; of Relu the activation itself, added by of().
  std::vector<at::Tensor> inputs = {};
  std::vector<int64_t> versions = {};  ///< of the inputs, when the codes were made

  CodesSource(Kind k, at::ScalarType type, std::vector<at::Tensor> given = {})
      : kind(k), dtype(type), inputs(std::move(given)) {
    for (const auto& input : inputs) versions.push_back(version_of(input));
  }

  /// For the activation y, which nothing else holds alive here: of Relu, whose graph holds it, y again is what y comes from.
  std::shared_ptr<const CodesSource> of(const at::Tensor& y) const {
    auto result = *this;
    if (kind == Kind::Relu) {
      result.inputs.push_back(y.detach());
      result.versions.push_back(version_of(y));
    }
    return std::make_shared<CodesSource>(std::move(result));
  }
  /// Whether the inputs are still what the codes were made of.
  bool is_current() const {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (version_of(inputs[i]) != versions[i]) return false;
    }
    return true;
  }
  /// The same bits again; of a function of x held as codes, those of its values with the scales that x gave, saturated.
  TE_INT8_API ops::Codes make() const;
  /// What those codes stand for, in the activation's dtype.
  TE_INT8_API at::Tensor make_values() const;

 private:
  static int64_t version_of(const at::Tensor& input) { return input.defined() && !input.is_inference() ? input._version() : 0; }
};

class Operand;

/// The transposed codes of an operand, which only an INT8 backward needs: made at most once, however many ask, in whichever
/// thread and on whichever stream.
class Transpose {
 public:
  /// Those of the operand that `operand()` gives.
  template <typename F>
  std::shared_ptr<Operand> get(const F& operand);

 private:
  std::mutex mutex_;
  std::shared_ptr<Operand> codes_;
  std::optional<StreamPoint> made_at_;
};

/// An operand in one of its forms.
class Operand {
 public:
  Operand(at::Tensor data, at::Tensor scales, OperandForm form, std::shared_ptr<const CodesSource> source = nullptr)
      : data_(std::move(data)), scales_(std::move(scales)), form_(form), source_(std::move(source)) {}

  static std::shared_ptr<Operand> make(const at::Tensor& x, OperandForm form) {
    ops::Codes codes;
    switch (form) {
      case OperandForm::RowCodes: codes = ops::quantize_rows(x, "row"); break;
      case OperandForm::TensorCodes: codes = ops::quantize_rows(x, "tensor"); break;
      case OperandForm::ColumnCodes: codes = ops::quantize_columns(as_rows(x)); break;
      case OperandForm::SampleCodes: codes = quantize_samples(x, "row"); break;
      case OperandForm::SampleCodesOneScale: codes = quantize_samples(x, "tensor"); break;
      case OperandForm::Values: codes = {x, at::Tensor()}; break;
    }
    return std::make_shared<Operand>(std::get<0>(codes), std::get<1>(codes), form);
  }

  struct Both;
  /// Codes of x [R,C] by row and by column, for two matmuls that reduce it along either axis.
  static Both make_both(const at::Tensor& x, bool column_sums);

  /// For many multiplications: packed() holds the codes a second time.
  void expect_reuse() { reused_ = true; }

  /// The same, with what packed() would make.
  void expect_reuse(at::Tensor packed) {
    reused_ = true;
    packed_ = std::move(packed);
  }

  /// Rows [first, first + count) of an operand with codes by row, which stays alive with them.
  static std::shared_ptr<Operand> rows_of(
      const std::shared_ptr<Operand>& whole, int64_t first, int64_t count) {
    const auto& scales = whole->scales_;
    auto rows = std::make_shared<Operand>(
        whole->data_.narrow(0, first, count),
        whole->form_ == OperandForm::TensorCodes ? scales : scales.narrow(0, first, count), whole->form_);
    if (whole->reused_ && first % kPanelRows == 0) {
      rows->whole_ = whole;
      rows->first_ = first;
    }
    return rows;
  }

  /// `origin` laid out in another shape, for one reader of several.
  static std::shared_ptr<Operand> view_of(
      const std::shared_ptr<Operand>& origin, at::Tensor data, at::Tensor scales, std::shared_ptr<const CodesSource> source) {
    auto view = std::make_shared<Operand>(std::move(data), std::move(scales), origin->form_, std::move(source));
    view->origin_ = origin;
    return view;
  }

  const at::Tensor& data() const { return data_; }
  const at::Tensor& scales() const { return scales_; }
  OperandForm form() const { return form_; }
  /// Where the codes can be had again, or null.
  const std::shared_ptr<const CodesSource>& source() const { return source_; }

  at::Tensor matrix() const { return as_rows(data_); }
  /// [R] or [1].
  at::Tensor scale_list() const { return scales_.dim() == 1 ? scales_ : scales_.reshape(-1); }

  /// [R,C] in `dtype`: float(code) * scale, rounded once.
  at::Tensor dequantized(at::ScalarType dtype) const {
    if (form_ == OperandForm::Values) return matrix().to(dtype);
    return ops::dequantize(matrix(), scale_list(), dtype);
  }

  /// The codes for scaled_mm_packed, or a convolution's weight for scaled_convolution_packed; made at most
  /// once, undefined where they are used once, or by a back end that reads them as they are.
  at::Tensor packed(const WindowPacking& packing = {}) {
    if (whole_) {
      TORCH_INTERNAL_ASSERT(packing == WindowPacking{});  // parts are of a Linear's weight
      const auto panels = whole_->packed();
      if (!panels.defined()) return {};
      const auto count = (data_.size(0) + kPanelRows - 1) / kPanelRows;
      return panels.narrow(0, first_ / kPanelRows, count);
    }
    if (!reused_ || !can_pack(data_)) return {};
    const std::lock_guard lock(mutex_);
    if (!packed_.defined() || packing_ != packing) {
      packed_ = pack_windows(matrix(), packing);
      packing_ = packing;
    }
    return packed_;
  }

  /// The transpose [C,R] by codes with a scale per row of its own, for a reduction over R; held as long as the operand.
  std::shared_ptr<Operand> transposed() {
    return transpose_.get([&]() -> const Operand& { return *this; });
  }

  /// A place for transposed codes that lives as long as those who have asked for it: the backwards that read one activation.
  std::shared_ptr<Transpose> shared_transpose() {
    if (origin_) return origin_->shared_transpose();
    const std::lock_guard lock(mutex_);
    auto shared = shared_transpose_.lock();
    if (!shared) shared_transpose_ = shared = std::make_shared<Transpose>();
    return shared;
  }

  std::shared_ptr<Operand> make_transposed() const {
    auto codes = form_ == OperandForm::ColumnCodes ? ops::Codes{data_, scales_} : ops::requantize_columns(matrix(), scale_list());
    auto result = std::make_shared<Operand>(std::move(std::get<0>(codes)), std::move(std::get<1>(codes)), OperandForm::RowCodes);
    if (reused_) result->expect_reuse();
    return result;
  }

 private:
  at::Tensor data_, scales_;
  OperandForm form_;
  std::shared_ptr<const CodesSource> source_;
  bool reused_ = false;
  std::shared_ptr<Operand> whole_;  ///< whose packed codes serve, from row first_ on
  int64_t first_ = 0;
  std::mutex mutex_;
  at::Tensor packed_;
  WindowPacking packing_;  ///< of packed_
  Transpose transpose_;
  std::weak_ptr<Transpose> shared_transpose_;
  std::shared_ptr<Operand> origin_;
};

template <typename F>
std::shared_ptr<Operand> Transpose::get(const F& operand) {
  const std::lock_guard lock(mutex_);
  if (!codes_ || !made_at_->usable_now()) {
    const auto& from = operand();
    auto codes = from.make_transposed();
    made_at_.emplace(codes->data().device());
    codes_ = std::move(codes);
  }
  made_at_->wait({codes_->data(), codes_->scales()});
  return codes_;
}

struct Operand::Both {
  std::shared_ptr<Operand> rows, columns;
  at::Tensor column_sums;  ///< fp32 [C], or undefined
};

inline Operand::Both Operand::make_both(const at::Tensor& x, bool column_sums) {
  const auto [codes, scales, codes_t, scales_t, sums] = ops::quantize_rows_and_columns(x, column_sums);
  return {
      std::make_shared<Operand>(codes, scales, OperandForm::RowCodes),
      std::make_shared<Operand>(codes_t, scales_t, OperandForm::ColumnCodes), column_sums ? sums : at::Tensor()};
}

}  // namespace te_int8::inline v0::detail
