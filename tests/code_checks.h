// The comparison of a back end's codes with the reference's, for the tests of each back end.
#pragma once

#include <te_int8/number_format.h>

#include "support.h"

namespace te_int8_test {

/// fp32 sums in any order: each within the rounding of its partial sums, where none of those overflows.
inline void require_sums_of_columns(const at::Tensor& sums, const at::Tensor& x) {
  const auto values = x.to(at::kFloat).to(at::kDouble);
  const auto bound = values.abs().sum(0) * (static_cast<double>(x.size(0)) * 0x1p-24) + 1e-30;
  const auto error = (sums.to(at::kDouble) - values.sum(0)).abs();
  const auto finite = values.isfinite().all(0), tame = values.abs().sum(0) < 3e38;
  REQUIRE(sums.scalar_type() == at::kFloat);
  REQUIRE(error.le(bound).logical_or_(tame.logical_not()).all().item<bool>());
  REQUIRE(sums.isfinite().logical_and_(finite.logical_not()).logical_not().all().item<bool>());
}

/// Every operation that makes codes, or values from codes, gives those of the reference, bit for bit.
inline void require_codes_of_reference(const at::Tensor& matrix, Layout layout) {
  namespace ops = te_int8::ops;
  namespace reference = te_int8::reference;
  const auto x = lay_out(matrix, layout);
  const auto by_row = ops::quantize_rows(x);
  REQUIRE(same(by_row, reference::quantize_rows(x, "row")));
  REQUIRE(same(ops::quantize_rows(x, "tensor"), reference::quantize_rows(x, "tensor")));
  REQUIRE(same(ops::quantize_columns(x), reference::quantize_columns(x)));
  const auto [by_both, scales_of_both, by_both_t, scales_of_both_t, sums] = ops::quantize_rows_and_columns(x, true);
  require_sums_of_columns(sums, x);
  REQUIRE(same(ops::column_sums(x), sums));
  REQUIRE(same(ops::Codes{by_both, scales_of_both}, reference::quantize_rows(x, "row")));
  REQUIRE(same(ops::Codes{by_both_t, scales_of_both_t}, reference::quantize_columns(x)));
  const auto& [codes, scales] = by_row;
  REQUIRE(same(ops::requantize_columns(codes, scales), reference::requantize_columns(codes, scales)));
  const auto laid_out = lay_out(codes, layout);
  const auto one = torch::full({1}, 0.37F);
  REQUIRE(same(ops::dequantize(laid_out, scales, x.scalar_type()), reference::dequantize(laid_out, scales, x.scalar_type())));
  REQUIRE(same(ops::dequantize(codes, one), reference::dequantize(codes, one, {})));
  REQUIRE(same(ops::requantize_columns(laid_out, one), reference::requantize_columns(laid_out, one)));
}

}  // namespace te_int8_test
