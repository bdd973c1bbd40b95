// The comparison of a back end's codes with the reference's, for the tests of each back end.
#pragma once

#include <te_int8/number_format.h>

#include "support.h"

namespace te_int8_test {

/// Every operation that makes codes gives those of the reference, bit for bit.
inline void require_codes_of_reference(const at::Tensor& matrix, Layout layout) {
  namespace ops = te_int8::ops;
  namespace reference = te_int8::reference;
  const auto x = lay_out(matrix, layout);
  const auto by_row = ops::quantize_rows(x);
  REQUIRE(same(by_row, reference::quantize_rows(x, "row")));
  REQUIRE(same(ops::quantize_rows(x, "tensor"), reference::quantize_rows(x, "tensor")));
  REQUIRE(same(ops::quantize_columns(x), reference::quantize_columns(x)));
  const auto [by_both, scales_of_both, by_both_t, scales_of_both_t] = ops::quantize_rows_and_columns(x);
  REQUIRE(same(ops::Codes{by_both, scales_of_both}, reference::quantize_rows(x, "row")));
  REQUIRE(same(ops::Codes{by_both_t, scales_of_both_t}, reference::quantize_columns(x)));
  const auto& [codes, scales] = by_row;
  REQUIRE(same(ops::requantize_columns(codes, scales), reference::requantize_columns(codes, scales)));
  const auto laid_out = lay_out(codes, layout);
  const auto one = torch::full({1}, 0.37F);
  REQUIRE(same(ops::requantize_columns(laid_out, one), reference::requantize_columns(laid_out, one)));
}

}  // namespace te_int8_test
