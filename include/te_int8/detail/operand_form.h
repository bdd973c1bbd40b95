// The forms that operands of a quantized layer have, and what of a recipe decides them.
#pragma once

#include <cstddef>

#include <te_int8/recipe.h>

namespace te_int8::inline v0::detail {

/// Precision and granularity of one layer: a Recipe without names and back end.
struct LinearConfig {
  Precision output = Precision::Int8;
  Precision grad_input = Precision::Full;
  Precision grad_weight = Precision::Full;
  Granularity x_granularity = Granularity::per_row();
  Granularity weight_granularity = Granularity::per_row();
  bool allow_full_precision = false;

  LinearConfig() = default;
  explicit LinearConfig(const Recipe& recipe)
      : output(recipe.output()),
        grad_input(recipe.grad_input()),
        grad_weight(recipe.grad_weight()),
        x_granularity(recipe.activations()),
        weight_granularity(recipe.weights()),
        allow_full_precision(recipe.allow_full_precision()) {}

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
  // Of a convolution's x [N,C,*] or weight [O,C,*], channels last: [N, * x C]
  SampleCodes,         ///< codes with a scale per sample or output channel
  SampleCodesOneScale, ///< codes with one scale
  Values,              ///< the tensor itself: output and backward Full
};
inline constexpr std::size_t kCodeForms = 5;  ///< Values left out

inline OperandForm operand_form(Precision output, Precision backward, Granularity granularity) {
  if (output == Precision::Int8) {
    return granularity.is_per_tensor() ? OperandForm::TensorCodes : OperandForm::RowCodes;
  }
  return backward == Precision::Int8 ? OperandForm::ColumnCodes : OperandForm::Values;
}

inline OperandForm quantized_form(Granularity granularity) {
  return operand_form(Precision::Int8, Precision::Full, granularity);
}

inline OperandForm sample_form(Granularity granularity) {
  return granularity.is_per_tensor() ? OperandForm::SampleCodesOneScale : OperandForm::SampleCodes;
}

}  // namespace te_int8::inline v0::detail
