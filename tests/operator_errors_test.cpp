// What the operations refuse, and how they say it: the operation, what it expected and what it got.
#include <functional>

#include "linear_calls.h"
#include "support.h"

using namespace te_int8_test;
using Catch::Matchers::ContainsSubstring;
namespace ops = te_int8::ops;

namespace {

struct BadCall {
  std::string expected, got;
  std::function<void()> call;
};

void check_refusals(const std::string& operation, const std::vector<BadCall>& calls) {
  for (const auto& [expected, got, call] : calls) {
    INFO(operation << " should say: expected " << expected << ", got " << got);
    const auto message = error_of(call);
    CHECK_THAT(message, ContainsSubstring("te_int8::" + operation + ": expected " + expected));
    CHECK_THAT(message, ContainsSubstring("got " + got));
  }
}

/// Real tensors and Meta tensors meet the same checks.
struct Devices {
  at::Device here, there;
  at::Tensor floats(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) const {
    return at::ones(sizes, at::dtype(dtype).device(here));
  }
  at::Tensor codes(at::IntArrayRef sizes) const { return floats(sizes, at::kChar); }
  at::Tensor elsewhere(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) const {
    return at::ones(sizes, at::dtype(dtype).device(there));
  }
};

Devices devices() {
  return GENERATE(Devices{at::kCPU, at::kMeta}, Devices{at::kMeta, at::kCPU});
}

}  // namespace

TEST_CASE("the quantizing operations refuse what they cannot quantize", "[operators][errors]") {
  const auto on = devices();
  const auto here = on.here.str(), there = on.there.str();
  check_refusals("quantize_rows", {
    {"x to be float, double, half or bfloat16", "Int", [&] { ops::quantize_rows(on.floats({2, 3}, at::kInt)); }},
    {"x to be float", "Char", [&] { ops::quantize_rows(on.codes({2, 3})); }},
    {"x to be float", "ComplexFloat", [&] { ops::quantize_rows(on.floats({2, 3}, at::kComplexFloat)); }},
    {"x with at least 1 dimension", "a scalar", [&] { ops::quantize_rows(on.floats({})); }},
    {"granularity \"row\" or \"tensor\"", "\"group\"", [&] { ops::quantize_rows(on.floats({2, 3}), "group"); }},
    {"x to be dense", "layout Sparse", [&] {
       ops::quantize_rows(at::sparse_coo_tensor({2, 3}, at::dtype(at::kFloat).device(at::kCPU)));
     }},
  });
  check_refusals("quantize_rows_and_columns", {
    {"x to be float", "Long", [&] { ops::quantize_rows_and_columns(on.floats({2, 3}, at::kLong)); }},
    {"x to have 2 dimensions", "shape [3]", [&] { ops::quantize_rows_and_columns(on.floats({3})); }},
  });
  check_refusals("column_sums", {
    {"x to be float", "Long", [&] { ops::column_sums(on.floats({2, 3}, at::kLong)); }},
    {"x to have 2 dimensions", "shape [3]", [&] { ops::column_sums(on.floats({3})); }},
  });
  check_refusals("quantize_columns", {
    {"x to be float", "Long", [&] { ops::quantize_columns(on.floats({2, 3}, at::kLong)); }},
    {"x to have 2 dimensions", "shape [3]", [&] { ops::quantize_columns(on.floats({3})); }},
    {"x to have 2 dimensions", "shape [1, 2, 3]", [&] { ops::quantize_columns(on.floats({1, 2, 3})); }},
  });
  check_refusals("requantize_columns", {
    {"codes to be int8", "Float", [&] { ops::requantize_columns(on.floats({2, 3}), on.floats({2})); }},
    {"codes to be int8", "Byte", [&] { ops::requantize_columns(on.floats({2, 3}, at::kByte), on.floats({2})); }},
    {"codes to have 2 dimensions", "shape [3]", [&] { ops::requantize_columns(on.codes({3}), on.floats({3})); }},
    {"scales to be float", "Double", [&] { ops::requantize_columns(on.codes({2, 3}), on.floats({2}, at::kDouble)); }},
    {"scales of shape [2] or [1]", "[3]", [&] { ops::requantize_columns(on.codes({2, 3}), on.floats({3})); }},
    {"scales of shape [2] or [1]", "[2, 1]", [&] { ops::requantize_columns(on.codes({2, 3}), on.floats({2, 1})); }},
    {"scales of shape [2] or [1]", "[]", [&] { ops::requantize_columns(on.codes({2, 3}), on.floats({})); }},
    {"scales on " + here, there, [&] { ops::requantize_columns(on.codes({2, 3}), on.elsewhere({2})); }},
  });
  check_refusals("dequantize", {
    {"codes to be int8", "Float", [&] { ops::dequantize(on.floats({2, 3}), on.floats({2})); }},
    {"codes with at least 1 dimension", "a scalar", [&] { ops::dequantize(on.codes({}), on.floats({1})); }},
    {"scales of float on " + here, "Double", [&] { ops::dequantize(on.codes({2, 3}), on.floats({2}, at::kDouble)); }},
    {"scales of float on " + here, "Float on " + there, [&] { ops::dequantize(on.codes({2, 3}), on.elsewhere({2})); }},
    {"scales of shape [2] or [1]", "[3]", [&] { ops::dequantize(on.codes({2, 3}), on.floats({3})); }},
    {"scales of shape [4, 2] or [1]", "[8]", [&] { ops::dequantize(on.codes({4, 2, 3}), on.floats({8})); }},
    {"out_dtype float, double, half or bfloat16", "Int",
     [&] { ops::dequantize(on.codes({2, 3}), on.floats({2}), at::kInt); }},
  });
}

TEST_CASE("scaled_mm refuses operands that do not fit together", "[operators][errors]") {
  const auto on = devices();
  const auto here = on.here.str(), there = on.there.str();
  const auto a = on.codes({2, 4}), b = on.codes({3, 4});
  const auto mm = [](auto... arguments) { return [=] { ops::scaled_mm(arguments...); }; };
  constexpr auto none = std::nullopt;
  check_refusals("scaled_mm", {
    {"a to be int8", "Float", mm(on.floats({2, 4}), b)},
    {"b to be int8", "Byte", mm(a, on.floats({3, 4}, at::kByte))},
    {"a to have 2 dimensions", "shape [4]", mm(on.codes({4}), b)},
    {"b to have 2 dimensions", "shape [1, 3, 4]", mm(a, on.codes({1, 3, 4}))},
    {"b to have K = 4 columns like a", "5", mm(a, on.codes({3, 5}))},
    {"b on " + here + " like a", there, mm(a, on.elsewhere({3, 4}, at::kChar))},
    {"a_scales to be float", "Half", mm(a, b, on.floats({2}, at::kHalf))},
    {"a_scales of shape [2] or [1]", "[3]", mm(a, b, on.floats({3}))},
    {"a_scales of shape [2] or [1]", "[2, 1]", mm(a, b, on.floats({2, 1}))},
    {"a_scales on " + here, there, mm(a, b, on.elsewhere({2}))},
    {"b_scales to be float", "Double", mm(a, b, none, on.floats({3}, at::kDouble))},
    {"b_scales of shape [3] or [1]", "[2]", mm(a, b, none, on.floats({2}))},
    {"b_scales on " + here, there, mm(a, b, none, on.elsewhere({3}))},
    {"bias to be float", "Int", mm(a, b, none, none, on.floats({3}, at::kInt))},
    {"bias of shape [3]", "[1]", mm(a, b, none, none, on.floats({1}))},
    {"bias of shape [3]", "[1, 3]", mm(a, b, none, none, on.floats({1, 3}))},
    {"bias on " + here, there, mm(a, b, none, none, on.elsewhere({3}))},
    {"out_dtype float, double, half or bfloat16", "Long", mm(a, b, none, none, none, at::kLong)},
    {"out_dtype float, double, half or bfloat16", "Char", mm(a, b, none, none, none, at::kChar)},
    {"no scales and no bias with out_dtype int32", "a_scales", mm(a, b, on.floats({2}), none, none, at::kInt)},
    {"no scales and no bias with out_dtype int32", "b_scales", mm(a, b, none, on.floats({3}), none, at::kInt)},
    {"no scales and no bias with out_dtype int32", "bias", mm(a, b, none, none, on.floats({3}), at::kInt)},
    {"K <= 131071", "131072", mm(on.codes({1, 131072}), on.codes({1, 131072}), none, none, none, at::kInt)},
  });
}

TEST_CASE("linear refuses operands that do not fit together", "[operators][errors]") {
  const auto on = devices();
  const auto here = on.here.str(), there = on.there.str();
  const auto x = on.floats({2, 4}), w = on.floats({3, 4});
  const auto call = [](auto... arguments) { return [=] { int8_linear(arguments...); }; };
  constexpr auto none = std::nullopt;
  check_refusals("linear", {
    {"x to be float", "Long", call(on.floats({2, 4}, at::kLong), w)},
    {"x to be float", "Char", call(on.codes({2, 4}), w)},
    {"weight to be float", "Char", call(x, on.codes({3, 4}))},
    {"weight to have 2 dimensions", "shape [4]", call(x, on.floats({4}))},
    {"x [*, 4] for weight [3, 4]", "[2, 5]", call(on.floats({2, 5}), w)},
    {"x [*, 4] for weight [3, 4]", "[]", call(on.floats({}), w)},
    {"weight on " + here + " like x", there, call(x, on.elsewhere({3, 4}))},
    {"weight of Float like x", "BFloat16; give out_dtype to mix them", call(x, on.floats({3, 4}, at::kBFloat16))},
    {"bias of shape [3]", "[4]", call(x, w, on.floats({4}))},
    {"bias to be float", "Int", call(x, w, on.floats({3}, at::kInt))},
    {"bias on " + here, there, call(x, w, on.elsewhere({3}))},
    {"out_dtype float", "Int", call(x, w, none, LinearOptions{.out_dtype = at::kInt})},
    {"granularity \"row\" or \"tensor\"", "\"column\"", call(x, w, none, LinearOptions{.x_granularity = "column"})},
    {"granularity \"row\" or \"tensor\"", "\"\"", call(x, w, none, LinearOptions{.weight_granularity = ""})},
  });
}

TEST_CASE("linear_prequantized refuses operands that do not fit together", "[operators][errors]") {
  const auto on = devices();
  const auto here = on.here.str(), there = on.there.str();
  const auto x = on.floats({2, 4}), codes = on.codes({3, 4}), scales = on.floats({3});
  const auto call = [](auto... arguments) { return [=] { int8_linear_prequantized(arguments...); }; };
  constexpr auto none = std::nullopt;
  const auto q = on.codes({2, 5, 4});
  check_refusals("linear_prequantized", {
    {"codes to be int8", "Float", call(x, on.floats({3, 4}), scales)},
    {"codes to have 2 dimensions", "shape [4]", call(x, on.codes({4}), scales)},
    {"scales to be float", "BFloat16", call(x, codes, on.floats({3}, at::kBFloat16))},
    {"scales of shape [3] or [1]", "[4]", call(x, codes, on.floats({4}))},
    {"scales on " + here, there, call(x, codes, on.elsewhere({3}))},
    {"x [*, 4] for codes [3, 4]", "[2, 3]", call(on.floats({2, 3}), codes, scales)},
    {"x [*, 4] for codes [3, 4]", "[]", call(on.floats({}), codes, scales)},
    {"x on " + here + " like codes", there, call(on.elsewhere({2, 4}), codes, scales)},
    {"x to be float", "Int", call(on.floats({2, 4}, at::kInt), codes, scales)},
    {"x_scales with int8 x", "none", call(q, codes, scales)},
    {"x_scales of float on " + here, "Half on " + here, call(q, codes, scales, none, on.floats({2, 5}, at::kHalf))},
    {"x_scales of float on " + here, "Float on " + there, call(q, codes, scales, none, on.elsewhere({2, 5}))},
    {"x_scales of shape [2, 5] or [1]", "[10]", call(q, codes, scales, none, on.floats({10}))},
    {"x_scales of shape [2, 5] or [1]", "[]", call(q, codes, scales, none, on.floats({}))},
    {"no x_scales with x of Float", "some", call(x, codes, scales, none, on.floats({2}))},
    {"bias of shape [3]", "[2]", call(x, codes, scales, on.floats({2}))},
    {"bias on " + here, there, call(x, codes, scales, on.elsewhere({3}))},
    {"out_dtype float", "Int", call(x, codes, scales, none, none, at::kInt)},
  });
}

TEST_CASE("operations without a gradient raise where one is asked for, and only there", "[operators][errors]") {
  const auto on = devices();
  const auto codes = on.codes({2, 4});
  const auto leaf = [&](at::IntArrayRef sizes) { return on.floats(sizes).requires_grad_(); };
  struct Case {
    std::string operation;
    std::function<void()> call;
  };
  const std::vector<Case> cases = {
    {"quantize_rows", [&] { ops::quantize_rows(leaf({2, 4})); }},
    {"quantize_rows", [&] { ops::quantize_rows(leaf({2, 4}), "tensor"); }},
    {"quantize_columns", [&] { ops::quantize_columns(leaf({2, 4})); }},
    {"column_sums", [&] { ops::column_sums(leaf({2, 4})); }},
    {"quantize_rows_and_columns", [&] { ops::quantize_rows_and_columns(leaf({2, 4})); }},
    {"requantize_columns", [&] { ops::requantize_columns(codes, leaf({2})); }},
    {"dequantize", [&] { ops::dequantize(codes, leaf({2})); }},
    {"scaled_mm", [&] { ops::scaled_mm(codes, codes, leaf({2})); }},
    {"scaled_mm", [&] { ops::scaled_mm(codes, codes, {}, leaf({2})); }},
    {"scaled_mm", [&] { ops::scaled_mm(codes, codes, {}, {}, leaf({2})); }},
    {"linear_prequantized", [&] { int8_linear_prequantized(on.floats({2, 4}), codes, leaf({2})); }},
    {"linear_prequantized", [&] { int8_linear_prequantized(codes, codes, on.floats({2}), {}, leaf({2})); }},
  };
  for (const auto& [operation, call] : cases) {
    INFO(operation);
    CHECK_THAT(
        error_of(call), ContainsSubstring("te_int8::" + operation + ": expected") &&
                            ContainsSubstring("without requires_grad"));
    const at::NoGradGuard no_grad;
    CHECK(error_of(call).empty());
  }
}
