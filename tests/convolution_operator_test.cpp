// te_int8::scaled_convolution on every back end against sums of products written out.
#include <numeric>

#include <te_int8/number_format.h>
#include <te_int8/te_int8.h>

#include "support.h"

using namespace te_int8_test;
namespace ops = te_int8::ops;

namespace {

struct ConvolutionCase {
  std::vector<int64_t> a, b, stride, padding, dilation;
  int64_t groups = 1;
};

const std::vector<ConvolutionCase>& cases() {
  static const std::vector<ConvolutionCase> all = {
      {{2, 5, 7}, {9, 5, 3}, {1}, {1}, {1}},
      {{3, 4, 11}, {8, 2, 4}, {2}, {3}, {2}, 2},
      {{1, 3, 9}, {1, 3, 9}, {1}, {0}, {1}},
      {{2, 32, 50}, {24, 32, 5}, {2}, {1}, {3}},
      {{2, 3, 8, 9}, {16, 3, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
      {{2, 16, 13, 7}, {33, 16, 3, 3}, {2, 1}, {0, 2}, {1, 2}},
      {{1, 64, 9, 10}, {40, 64, 1, 1}, {1, 1}, {0, 0}, {1, 1}},
      {{2, 8, 10, 12}, {24, 2, 3, 2}, {2, 2}, {1, 1}, {2, 1}, 4},
      {{2, 12, 8, 8}, {12, 1, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 12},
      {{2, 136, 7, 6}, {136, 1, 5, 3}, {2, 1}, {2, 1}, {1, 2}, 136},
      {{2, 37, 6}, {74, 1, 3}, {1}, {1}, {1}, 37},
      {{2, 21, 5, 6}, {28, 3, 3, 2}, {1, 1}, {1, 0}, {1, 1}, 7},
      {{1, 96, 6, 6}, {128, 48, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 2},
      {{1, 32, 7, 7}, {48, 8, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 4},
      {{2, 40, 5, 5}, {80, 20, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 2},
      {{1, 6, 3, 5, 4}, {18, 1, 2, 3, 3}, {1, 1, 1}, {1, 1, 0}, {1, 1, 1}, 6},
      {{1, 7, 31, 5}, {67, 7, 5, 5}, {3, 1}, {4, 2}, {1, 1}},
      {{3, 2, 1, 1}, {8, 2, 1, 1}, {1, 1}, {2, 2}, {1, 1}},
      {{1, 200, 4, 4}, {10, 200, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
      {{2, 64, 14, 14}, {128, 64, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
      {{3, 48, 17, 20}, {72, 48, 5, 3}, {2, 3}, {2, 0}, {1, 2}},
      {{5, 16, 1, 23}, {16, 16, 1, 7}, {1, 2}, {0, 3}, {1, 1}},
      {{1, 32, 40, 40}, {8, 32, 2, 2}, {9, 8}, {1, 0}, {3, 1}},
      {{6, 20, 3, 2}, {40, 20, 1, 1}, {1, 1}, {0, 0}, {1, 1}},
      {{3, 24, 9, 11}, {16, 24, 1, 1}, {2, 3}, {0, 0}, {1, 1}},
      {{2, 9, 13, 6}, {36, 9, 3, 6}, {1, 1}, {1, 0}, {1, 1}},
      {{1, 8, 4, 4}, {8, 8, 2, 2}, {50, 60}, {50, 60}, {50, 60}},
      {{1, 4, 2, 201}, {8, 4, 1, 2}, {1, 1}, {0, 0}, {1, 1}},
      {{2, 144, 5, 5}, {264, 144, 3, 3}, {1, 1}, {2, 2}, {1, 1}},
      {{2, 3, 4, 6, 5}, {8, 3, 2, 3, 3}, {1, 2, 1}, {1, 0, 1}, {1, 1, 2}},
      {{1, 4, 3, 5, 5}, {16, 2, 3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, 2},
      {{0, 3, 5, 5}, {8, 3, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
      {{2, 3, 5, 5}, {0, 3, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
  };
  return all;
}

at::Tensor codes_like(const std::vector<int64_t>& sizes) { return at::randint(-127, 128, sizes).to(at::kChar); }

/// sum over the window and the group's channels, position by position.
std::vector<int32_t> sums_by_definition(const at::Tensor& a, const at::Tensor& b, const ConvolutionCase& c) {
  const auto spatial = c.stride.size();
  const auto x = read<int64_t, int8_t>(a.contiguous()), w = read<int64_t, int8_t>(b.contiguous());
  const te_int8::detail::ConvolutionGeometry geometry{c.stride, c.padding, c.dilation, c.groups};
  const auto sizes = geometry.result_sizes(c.a, c.b);
  const auto per_group = c.b[0] / c.groups;
  std::vector<int32_t> sums;
  const auto count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  const auto window = std::accumulate(c.b.begin() + 2, c.b.end(), int64_t{1}, std::multiplies<>());
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int64_t> at(sizes.size());
    for (auto d = sizes.size(), rest = static_cast<std::size_t>(i); d-- > 0; rest /= static_cast<std::size_t>(sizes[d])) {
      at[d] = static_cast<int64_t>(rest % static_cast<std::size_t>(sizes[d]));
    }
    int64_t sum = 0;
    for (int64_t channel = 0; channel < c.b[1]; ++channel) {
      for (int64_t k = 0; k < window; ++k) {
        int64_t from = at[0] * c.a[1] + at[1] / per_group * c.b[1] + channel, rest = k, stride = window;
        bool inside = true;
        for (std::size_t d = 0; d < spatial; ++d) {
          stride /= c.b[d + 2];
          const auto position = at[d + 2] * c.stride[d] - c.padding[d] + rest / stride * c.dilation[d];
          rest %= stride;
          inside = inside && position >= 0 && position < c.a[d + 2];
          from = from * c.a[d + 2] + position;
        }
        if (inside) sum += x[static_cast<std::size_t>(from)] * w[static_cast<std::size_t>((at[1] * c.b[1] + channel) * window + k)];
      }
    }
    sums.push_back(static_cast<int32_t>(sum));
  }
  return sums;
}

at::Tensor convolved(
    const at::Tensor& a, const at::Tensor& b, const ConvolutionCase& c, const std::optional<at::Tensor>& a_scales = {},
    const std::optional<at::Tensor>& b_scales = {}, const std::optional<at::Tensor>& bias = {},
    std::optional<at::ScalarType> dtype = {}) {
  return ops::scaled_convolution(a, b, a_scales, b_scales, bias, c.stride, c.padding, c.dilation, c.groups, dtype);
}

at::Tensor by_reference(
    const at::Tensor& a, const at::Tensor& b, const ConvolutionCase& c, const std::optional<at::Tensor>& a_scales,
    const std::optional<at::Tensor>& b_scales, const std::optional<at::Tensor>& bias, at::ScalarType dtype) {
  return te_int8::reference::scaled_convolution(
      a, b, a_scales, b_scales, bias, {c.stride, c.padding, c.dilation, c.groups}, dtype);
}

at::Tensor in_memory(const at::Tensor& a, const std::string& memory) {
  if (memory == "channels last") {
    return a.dim() == 4 ? a.contiguous(at::MemoryFormat::ChannelsLast)
           : a.dim() == 5 ? a.contiguous(at::MemoryFormat::ChannelsLast3d) : a;
  }
  return memory == "strided" ? at::stack({a, a}, -1).select(-1, 1) : a;
}

}  // namespace

TEST_CASE("scaled_convolution gives the sums of its definition", "[operators][cpu][convolution]") {
  const auto c = GENERATE(from_range(cases()));
  const auto memory = GENERATE("contiguous", "channels last", "strided");
  CAPTURE(c.a, c.b, c.stride, c.padding, c.dilation, c.groups, memory);
  const auto a = in_memory(codes_like(c.a), memory), b = in_memory(codes_like(c.b), memory);
  const auto got = convolved(a, b, c, {}, {}, {}, at::kInt);
  CHECK(read<int32_t, int32_t>(got.contiguous()) == sums_by_definition(a, b, c));
  CHECK(same(by_reference(a, b, c, {}, {}, {}, at::kInt), got));
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    CHECK(same(convolved(a, b, c, {}, {}, {}, dtype), got.to(at::kFloat).to(dtype)));
  }
  CHECK((got.numel() == 0 || got.suggest_memory_format() == a.suggest_memory_format()));
}

TEST_CASE("scaled_convolution scales, adds and rounds as its reference", "[operators][cpu][convolution]") {
  const auto c = GENERATE(from_range(cases()));
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kHalf, at::kDouble);
  const bool one_scale = GENERATE(false, true);
  CAPTURE(c.a, c.b, dtype, one_scale);
  torch::manual_seed(47);
  const auto a = codes_like(c.a), b = codes_like(c.b);
  const auto a_scales = at::rand({one_scale ? 1 : c.a[0]}) * 0.02, b_scales = at::rand({one_scale ? 1 : c.b[0]}) * 0.02;
  const auto bias = at::randn({c.b[0]}).to(dtype);
  const auto got = convolved(a, b, c, a_scales, b_scales, bias, dtype);
  const auto wide = by_reference(a, b, c, a_scales, b_scales, bias, at::kFloat).to(at::kDouble);
  CHECK(got.scalar_type() == dtype);
  // Before the cast within 2^-22 of the parts. A cast to fewer bits keeps the order, so it lies between those of the two ends.
  const auto slack = by_reference(a.abs(), b.abs(), c, a_scales, b_scales, bias.abs(), at::kFloat).to(at::kDouble) * 0x1p-22;
  const auto rounded = [&](const at::Tensor& x) { return at::elementSize(dtype) == 2 ? x.to(dtype).to(at::kDouble) : x; };
  const auto value = got.to(at::kDouble);
  CHECK((rounded(wide - slack) <= value).all().item<bool>());
  CHECK((value <= rounded(wide + slack)).all().item<bool>());
}

TEST_CASE("scaled_convolution names what is wrong", "[operators][convolution]") {
  const auto a = codes_like({2, 4, 5, 5}), b = codes_like({8, 4, 3, 3});
  const auto error = [&](const at::Tensor& x, const at::Tensor& w, const ConvolutionCase& c, std::optional<at::Tensor> scales = {},
                         std::optional<at::ScalarType> dtype = {}) {
    return error_of([&] { convolved(x, w, c, scales, {}, {}, dtype); });
  };
  const ConvolutionCase good{{}, {}, {1, 1}, {0, 0}, {1, 1}};
  auto c = good;
  CHECK(error(a.to(at::kFloat), b, c).find("expected a to be int8") != std::string::npos);
  CHECK(error(a[0][0], b, c).find("1 to 3 spatial dimensions") != std::string::npos);
  CHECK(error(a, b[0], c).find("expected b to have 4 dimensions") != std::string::npos);
  c.stride = {1};
  CHECK(error(a, b, c).find("expected stride to have 2 values of at least 1, got [1]") != std::string::npos);
  c = good;
  c.dilation = {1, 0};
  CHECK(error(a, b, c).find("expected dilation") != std::string::npos);
  c = good;
  c.groups = 3;
  CHECK(error(a, b, c).find("groups = 3") != std::string::npos);
  c = good;
  c.dilation = {3, 3};
  CHECK(error(a, b, c).find("fits into the padded a") != std::string::npos);
  CHECK(error(a, b, good, at::ones({3})).find("expected a_scales of shape [2] or [1], got [3]") != std::string::npos);
  CHECK(error(a, b, good, at::ones({2}), at::kInt).find("no scales") != std::string::npos);
  CHECK(error(a, b, good, {}, at::kLong).find("expected out_dtype") != std::string::npos);
}

TEST_CASE("the reference's sums are exact whatever LibTorch may use", "[operators][convolution]") {
  const auto a = codes_like({16, 64, 16, 16}), b = codes_like({4, 64, 3, 3});
  const auto sums = [&] { return ops::scaled_convolution(a, b, {}, {}, {}, {1, 1}, {1, 1}, {1, 1}, 1, at::kInt); };
  const auto expected = sums();
  CHECK(same(expected, at::conv2d(a.to(at::kDouble), b.to(at::kDouble), {}, 1, 1).round().to(at::kInt)));
  const bool enabled = at::globalContext().userEnabledMkldnn();
  at::globalContext().setUserEnabledMkldnn(false);  // then NNPACK's transforms would be chosen
  const auto without = sums();
  at::globalContext().setUserEnabledMkldnn(enabled);
  CHECK(same(without, expected));
}
