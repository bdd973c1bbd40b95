// The back end "cpu" against the reference, bit for bit. ctest runs this file once per instruction set.
#include <algorithm>
#include <cfenv>
#include <cstdlib>
#include <filesystem>

#include <ATen/record_function.h>

#include <te_int8/backends.h>
#include <te_int8/detail/panel_cache.h>
#include <te_int8/number_format.h>

#include "code_checks.h"
#include "guard_support.h"
#include "linear_calls.h"

using namespace te_int8_test;
namespace ops = te_int8::ops;
namespace reference = te_int8::reference;

namespace {

/// Skips where TE_INT8_CPU_ISA names an instruction set that the processor lacks, and off the CPU.
void skip_where_it_cannot_run() {
  SKIP_UNLESS_CPU();
  const auto error = error_of([] { ops::quantize_rows(torch::ones({1, 1})); });
  if (error.find("which it lacks") != std::string::npos) SKIP(error);
}

int reference_products = 0;  ///< see the case that counts them
using Codes = std::tuple<Tensor, Tensor>;


/// The shapes of all tests, and some that fill whole tiles, blocks and panels and go beyond them.
std::vector<Shape> matrices_for_cpu() {
  auto result = shapes();
  for (const int64_t rows : {11, 12, 13, 63, 64, 65, 95, 96, 97, 193}) {
    for (const int64_t columns : {4, 63, 64, 65, 258}) result.emplace_back(rows, columns);
  }
  for (const int64_t rows : {13, 16, 23, 24, 25, 112}) {  // two passes over parts of a panel, and none
    for (const int64_t depth : {508, 511, 512, 513, 1030}) result.emplace_back(rows, depth);
  }
  for (int64_t i = 0; result.size() < 510; ++i) result.emplace_back(1 + i * 29 % 97, 1 + i * 53 % 211);
  return result;
}

}  // namespace

TEST_CASE("codes and scales of the cpu back end are the reference's", "[cpu][numbers]") {
  skip_where_it_cannot_run();
  torch::manual_seed(71);
  int64_t i = 0;
  for (const auto& [rows, columns] : matrices_for_cpu()) {
    const auto dtype = kFloats[static_cast<std::size_t>(i) % kFloats.size()];
    const auto layout = static_cast<Layout>(i++ % kLayouts);
    CAPTURE(rows, columns, dtype, static_cast<int>(layout));
    require_codes_of_reference(random_matrix(rows, columns, dtype, /*special=*/true), layout);
  }
}

TEST_CASE("sums and results of the cpu back end are the reference's", "[cpu][numbers]") {
  skip_where_it_cannot_run();
  torch::manual_seed(72);
  int64_t i = 0;
  for (const auto& [rows, depth] : matrices_for_cpu()) {
    const int64_t columns = i % 7 == 0 ? i % 200 : 1 + i * 13 % 71;
    const auto layout = static_cast<Layout>(i % kLayouts);
    const auto dtype = kFloats[static_cast<std::size_t>(i / 7) % kFloats.size()];
    CAPTURE(rows, depth, columns, dtype, static_cast<int>(layout));
    const auto a = lay_out(random_codes(rows, depth), layout), b = lay_out(random_codes(columns, depth), layout);
    REQUIRE(same(ops::scaled_mm(a, b, {}, {}, {}, at::kInt), reference::scaled_mm(a, b, {}, {}, {}, at::kInt)));
    using Optional = std::optional<Tensor>;
    const auto a_scales = i % 3 == 0 ? Optional() : Optional(torch::rand({i % 3 == 1 ? rows : 1}));
    const auto b_scales = i % 5 == 0 ? Optional() : Optional(torch::rand({i % 5 == 1 ? 1 : columns}));
    const auto bias = i % 2 == 0 ? Optional() : Optional(torch::randn({columns}).to(dtype));
    REQUIRE(same(ops::scaled_mm(a, b, a_scales, b_scales, bias, dtype),
                 reference::scaled_mm(a, b, a_scales, b_scales, bias, dtype)));
    ++i;
  }
}

TEST_CASE("extreme codes over the deepest sums are exact", "[cpu][numbers]") {
  skip_where_it_cannot_run();
  for (const int64_t depth : {131'071, 131'072, 140'001}) {
    for (const int value : {-128, 127}) {
      const auto a = torch::full({3, depth}, -128, at::kChar), b = torch::full({2, depth}, value, at::kChar);
      const auto expected = -128.0 * value * static_cast<double>(depth);
      const auto sums = ops::scaled_mm(a, b, {}, {}, {}, at::kDouble);
      CHECK(sums.eq(static_cast<double>(static_cast<float>(expected))).all().item<bool>());
    }
  }
}

TEST_CASE("a guarded model computes the same bits by both back ends", "[cpu][guard]") {
  skip_where_it_cannot_run();
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kHalf, at::kDouble);
  const auto recipe = GENERATE(Recipe::qat(), Recipe::switchback(), Recipe::int8_training());
  torch::manual_seed(73);
  nn::TransformerDecoder model(nn::TransformerDecoderOptions(
      nn::TransformerDecoderLayerOptions(64, 2).dim_feedforward(100).dropout(0.0), 2));
  model->to(dtype);
  const auto x = torch::randn({5, 2, 64}).to(dtype), memory = torch::randn({7, 2, 64}).to(dtype);
  const auto run = [&](const std::string& backend) {
    model->zero_grad();
    Recipe by = recipe;
    const AutocastGuard guard(model, Mode::QAT, by.backend(backend));
    for (int i = 0; i < 2; ++i) model(x, memory).pow(2).sum().backward();  // the second one meets a gradient
    CHECK(line_of(guard.report(), "layers.0.linear1").backend == backend);
    std::vector<Tensor> results{model(x, memory).detach()};
    for (const auto& parameter : model->parameters()) results.push_back(parameter.grad().clone());
    return results;
  };
  const auto by_cpu = run("cpu"), by_reference = run("reference");
  for (std::size_t i = 0; i < by_cpu.size(); ++i) {
    CAPTURE(i, dtype);
    CHECK(same(by_cpu[i], by_reference[i]));
  }
}

TEST_CASE("codes of linear_prequantized are packed once, until they change", "[cpu][operators]") {
  skip_where_it_cannot_run();
  auto& cache = te_int8::detail::PanelCache::instance();
  cache.clear();
  torch::manual_seed(74);
  const auto x = torch::randn({5, 70});
  auto [codes, scales] = ops::quantize_rows(torch::randn({40, 70}));
  const auto expected = [&](const Tensor& by) {
    const auto [x_codes, x_scales] = reference::quantize_rows(x, "row");
    return reference::scaled_mm(x_codes, by, x_scales, scales.slice(0, 0, by.size(0)), {}, at::kFloat);
  };
  for (int i = 0; i < 2; ++i) {
    CHECK(same(int8_linear_prequantized(x, codes, scales), expected(codes)));
    CHECK(cache.size() == 1);
  }
  codes.neg_();
  CHECK(same(int8_linear_prequantized(x, codes, scales), expected(codes)));
  CHECK(cache.size() == 1);

  {
    const auto rows = codes.narrow(0, 3, 20);
    CHECK(same(int8_linear_prequantized(x, rows, scales.slice(0, 0, 20)), expected(rows)));
    rows.neg_();  // counted in the version that both share
    CHECK(same(int8_linear_prequantized(x, codes, scales), expected(codes)));
    CHECK(same(int8_linear_prequantized(x, rows, scales.slice(0, 0, 20)), expected(rows)));
  }
  codes.data().neg_();  // counted nowhere
  te_int8::refresh(*nn::Linear(2, 2));
  CHECK(same(int8_linear_prequantized(x, codes, scales), expected(codes)));
  {
    std::vector<int8_t> values(40 * 70, 3);
    const auto foreign = torch::from_blob(values.data(), {40, 70}, at::kChar);
    int8_linear_prequantized(x, foreign, scales);
    std::ranges::fill(values, int8_t{-5});
    CHECK(same(int8_linear_prequantized(x, foreign, scales), expected(foreign)));
  }
  {
    const c10::InferenceMode inference;
    auto unversioned = codes.clone();
    for (int i = 0; i < 2; ++i) {
      CHECK(same(int8_linear_prequantized(x, unversioned, scales), expected(unversioned)));
      unversioned.neg_();
    }
  }
  codes = Tensor();
  auto [other, other_scales] = ops::quantize_rows(torch::randn({4, 70}));
  int8_linear_prequantized(x, other, other_scales);
  CHECK(cache.size() == 1);  // those of codes that are gone went
  te_int8::refresh(*nn::Linear(2, 2));
  CHECK(cache.size() == 0);
}

TEST_CASE("codes do not depend on a thread's rounding mode or on flushed denormals", "[cpu][numbers]") {
  skip_where_it_cannot_run();
  torch::manual_seed(76);
  const auto x = torch::randn({200, 67});
  const auto small = torch::tensor({0x1p-120F, 0x1p-127F, -0x1p-127F}).repeat({64, 1});
  const auto half = torch::full({3, 12}, 2e-5, at::kHalf);
  const auto all_codes = [&] {
    std::vector<Codes> result;
    for (const auto& values : {x, small, half}) {
      result.push_back(ops::quantize_rows(values));
      result.push_back(ops::quantize_rows(values, "tensor"));
      result.push_back(ops::quantize_columns(values));
    }
    return result;
  };
  const auto expected = all_codes();
  std::vector<std::vector<Codes>> others;
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(mode);
    others.push_back(all_codes());
    std::fesetround(FE_TONEAREST);
  }
  if (at::globalContext().setFlushDenormal(true)) others.push_back(all_codes());
  at::globalContext().setFlushDenormal(false);
  for (const auto& got : others) {
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK(same(got[i], expected[i]));
  }
}

TEST_CASE("a weight packed by one back end is computed by the one in force", "[cpu][guard]") {
  skip_where_it_cannot_run();
  torch::manual_seed(77);
  nn::Linear layer(8, 8);
  layer->weight.set_requires_grad(false);  // its codes outlive the scope
  layer->bias.set_requires_grad(false);
  const auto x = torch::randn({3, 8});
  const auto products = [&](const std::string& backend) {
    const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback([](const at::RecordFunction& function) {
      if (std::string(function.name()) == "aten::matmul") ++reference_products;
      return std::unique_ptr<at::ObserverContext>();
    }).scopes({at::RecordScope::FUNCTION}));
    reference_products = 0;
    const AutocastGuard guard(layer, Mode::Inference, Recipe().backend(backend));
    layer->forward(x);
    at::removeCallback(handle);
    return reference_products;
  };
  CHECK(products("cpu") == 0);
  CHECK(products("reference") > 0);
  CHECK(products("cpu") == 0);
}

TEST_CASE("large results reuse memory, and are ordinary tensors", "[cpu][operators]") {
  skip_where_it_cannot_run();
  torch::manual_seed(75);
  const auto a = random_codes(1024, 8), b = random_codes(600, 8);  // 2.3 MiB of sums
  const auto product = [&] { return ops::scaled_mm(a, b, {}, {}, {}, at::kInt); };
  const auto expected = reference::scaled_mm(a, b, {}, {}, {}, at::kInt);
  auto first = product(), second = product();
  CHECK(first.data_ptr() != second.data_ptr());
  CHECK(same(first, expected));
  CHECK(same(second, expected));
  const auto* place = first.data_ptr();
  first = Tensor();
  CHECK(product().data_ptr() == place);
  CHECK(same(product(), expected));
  CHECK(same(second, expected));

  second.resize_({2048, 600});
  CHECK(same(second.narrow(0, 0, 1024), expected));
  CHECK(same(second.clone().narrow(0, 0, 1024), expected));
  {
    const c10::InferenceMode inference;
    CHECK(product().is_inference());
  }
  CHECK_FALSE(product().is_inference());
}

TEST_CASE("\"auto\" is the cpu back end on the CPU, and \"cpu\" is refused elsewhere", "[cpu][guard]") {
  skip_where_it_cannot_run();
  using te_int8::detail::Backend;
  using te_int8::detail::backend_name;
  CHECK(backend_name(Backend::Auto, at::kCPU) == "cpu");
  CHECK(backend_name(Backend::Auto, at::kCUDA) != "cpu");
  CHECK(backend_name(Backend::Auto, at::kMeta) == "reference");
  const auto message = error_of([] { backend_name(Backend::Cpu, at::kCUDA); });
  CHECK(message.find("expected a back end for cuda, got 'cpu'") != std::string::npos);
}

TEST_CASE("child: an instruction set that does not exist", "[.][cpu_isa_child]") {
  CHECK(error_of([] { ops::quantize_rows(torch::ones({2, 2})); })
            .find("expected TE_INT8_CPU_ISA to be one of ") != std::string::npos);
}

TEST_CASE("an unknown instruction set is an error that lists those there are", "[cpu][errors]") {
  SKIP_UNLESS_CPU();
  const auto self = std::filesystem::read_symlink("/proc/self/exe").string();
  CHECK(std::system(("TE_INT8_CPU_ISA=mmx '" + self + "' '[cpu_isa_child]' > /dev/null").c_str()) == 0);
}
