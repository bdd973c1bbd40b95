// Operands: X and W of a quantized linear layer as they are held between forward and backward.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include <torch/types.h>

#include <te_int8/detail/stream_stamp.h>
#include <te_int8/operators.h>
#include <te_int8/recipe.h>

namespace te_int8::inline v0::detail {

/// Precision and granularity of one layer: a Recipe without names and back end.
struct LinearConfig {
  Precision output = Precision::Int8;
  Precision grad_input = Precision::Full;
  Precision grad_weight = Precision::Full;
  Granularity x_granularity = Granularity::per_row();
  Granularity weight_granularity = Granularity::per_row();

  LinearConfig() = default;
  explicit LinearConfig(const Recipe& recipe)
      : output(recipe.output()),
        grad_input(recipe.grad_input()),
        grad_weight(recipe.grad_weight()),
        x_granularity(recipe.activations()),
        weight_granularity(recipe.weights()) {}

  bool quantizes_nothing() const {
    return output == Precision::Full && grad_input == Precision::Full &&
           grad_weight == Precision::Full;
  }
};

/// How an operand (X or W) is held between forward and backward.
enum class OperandForm {
  RowCodes,     ///< [R,C] codes with a scale per row
  TensorCodes,  ///< [R,C] codes with one scale
  ColumnCodes,  ///< [C,R] codes of the transpose, one scale per column: output Full, backward Int8
  Values,       ///< the tensor itself: output and backward Full
};

inline OperandForm operand_form(Precision output, Precision backward, Granularity granularity) {
  if (output == Precision::Int8) {
    return granularity.is_per_tensor() ? OperandForm::TensorCodes : OperandForm::RowCodes;
  }
  return backward == Precision::Int8 ? OperandForm::ColumnCodes : OperandForm::Values;
}

inline OperandForm quantized_form(Granularity granularity) {
  return operand_form(Precision::Int8, Precision::Full, granularity);
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
  return as_rows(dy).sum(0, /*keepdim=*/false, dtype);
}

inline std::optional<at::Tensor> as_optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// An operand in one of its forms. Its transposed codes, which only an INT8 backward needs, are
/// made at most once, however many backwards ask.
class Operand {
 public:
  Operand(at::Tensor data, at::Tensor scales, OperandForm form)
      : data_(std::move(data)), scales_(std::move(scales)), form_(form) {}

  static std::shared_ptr<Operand> make(const at::Tensor& x, OperandForm form) {
    ops::Codes codes;
    switch (form) {
      case OperandForm::RowCodes: codes = ops::quantize_rows(x, "row"); break;
      case OperandForm::TensorCodes: codes = ops::quantize_rows(x, "tensor"); break;
      case OperandForm::ColumnCodes: codes = ops::quantize_columns(as_rows(x)); break;
      case OperandForm::Values: codes = {x, at::Tensor()}; break;
    }
    return std::make_shared<Operand>(std::get<0>(codes), std::get<1>(codes), form);
  }

  const at::Tensor& data() const { return data_; }
  const at::Tensor& scales() const { return scales_; }

  at::Tensor matrix() const { return as_rows(data_); }

  /// [R,C] in `dtype`: float(code) * scale, rounded once.
  at::Tensor dequantized(at::ScalarType dtype) const {
    if (form_ == OperandForm::Values) return matrix().to(dtype);
    return matrix().to(at::kFloat).mul_(scales_.reshape(-1).unsqueeze(1)).to(dtype);
  }

  /// [C,R] codes with a scale per row of the transpose, for a reduction over R.
  ops::Codes transposed_codes() {
    if (form_ == OperandForm::ColumnCodes) return {data_, scales_};
    const std::lock_guard lock(mutex_);
    auto& [codes, code_scales] = transposed_;
    if (!codes.defined()) {
      transposed_ = ops::requantize_columns(matrix(), scales_.reshape(-1));
      transposed_stamp_.emplace(codes.device());
    }
    transposed_stamp_->wait({codes, code_scales});
    return transposed_;
  }

 private:
  at::Tensor data_, scales_;
  OperandForm form_;
  std::mutex mutex_;
  ops::Codes transposed_;
  std::optional<StreamStamp> transposed_stamp_;
};

}  // namespace te_int8::inline v0::detail
