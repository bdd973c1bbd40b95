// The kernels for CUDA against the reference, bit for bit: codes, scales, int32 sums, and the one formula of
// the epilogue. Runs where TE_INT8_TEST_DEVICE is cuda.
#include <algorithm>
#include <cmath>
#include <thread>

#include <te_int8/backends.h>
#include <te_int8/detail/few_rows.h>
#include <te_int8/number_format.h>

#include "code_checks.h"
#include "guard_support.h"
#include "linear_calls.h"

using namespace te_int8_test;
namespace ops = te_int8::ops;
namespace reference = te_int8::reference;

namespace {

using Codes = std::tuple<Tensor, Tensor>;

/// The shapes of all tests; tiles and pieces full, and one more or less; rows up to 200,000 wide.
std::vector<Shape> matrices_for_cuda() {
  auto result = shapes();
  for (const int64_t rows : {63, 64, 65, 127, 128, 129, 511, 513, 1000}) {
    for (const int64_t columns : {16, 48, 128, 256, 272, 513}) result.emplace_back(rows, columns);
  }
  for (const int64_t wide : {4096, 8192, 8208, 16384, 16400, 32768, 32784, 65536, 65552, 100'003, 200'000}) {
    result.emplace_back(3, wide);
    result.emplace_back(wide, 3);
  }
  for (const int64_t wide : {524'288, 524'304}) result.emplace_back(2, wide);
  for (int64_t i = 0; result.size() < 510; ++i) result.emplace_back(1 + i * 29 % 97, 1 + i * 53 % 211);
  return result;
}

bool usable(const std::string& backend) {
  return backend == "auto" || std::ranges::any_of(te_int8::backends(), [&](const te_int8::BackendInfo& info) {
    return info.name == backend && info.usable;
  });
}

std::vector<float> on_host(const std::optional<Tensor>& values, int64_t count, float otherwise) {
  if (!values) return std::vector<float>(static_cast<std::size_t>(count), otherwise);
  const auto all = values->to(at::kCPU, at::kFloat).expand({count}).contiguous();
  return {all.const_data_ptr<float>(), all.const_data_ptr<float>() + count};
}

/// fma(b_scale, float(sum) * a_scale, bias) of the reference's sums, on the host.
Tensor formula(
    const Tensor& a, const Tensor& b, const Optional& a_scales, const Optional& b_scales, const Optional& bias,
    at::ScalarType dtype) {
  const int64_t rows = a.size(0), columns = b.size(0);
  const auto sums = reference::scaled_mm(a, b, {}, {}, {}, at::kInt).cpu();
  const auto left = on_host(a_scales, rows, 1), right = on_host(b_scales, columns, 1),
             added = on_host(bias, columns, -0.0F);
  auto result = torch::empty({rows, columns}, at::TensorOptions(at::kCPU));
  for (int64_t i = 0; i < rows * columns; ++i) {
    const auto row = static_cast<std::size_t>(i / columns), column = static_cast<std::size_t>(i % columns);
    volatile float scaled = static_cast<float>(sums.const_data_ptr<int32_t>()[i]);
    scaled = scaled * left[row];
    result.mutable_data_ptr<float>()[i] = std::fma(right[column], scaled, added[column]);
  }
  return result.to(test_device(), dtype);
}

}  // namespace

TEST_CASE("codes and scales of the kernels for CUDA are the reference's", "[cuda][numbers]") {
  SKIP_UNLESS_CUDA();
  torch::manual_seed(81);
  int64_t i = 0;
  for (const auto& [rows, columns] : matrices_for_cuda()) {
    const auto dtype = kFloats[static_cast<std::size_t>(i) % kFloats.size()];
    const auto layout = static_cast<Layout>(i++ % 3 == 0 ? 0 : i % kLayouts);
    CAPTURE(rows, columns, dtype, static_cast<int>(layout));
    require_codes_of_reference(random_matrix(rows, columns, dtype, /*special=*/true), layout);
  }
}

TEST_CASE("codes by row and by column of large matrices, made at once, are the reference's", "[cuda][numbers]") {
  SKIP_UNLESS_CUDA();
  torch::manual_seed(87);
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    for (const auto& [rows, columns] :
         std::vector<Shape>{{4097, 4096}, {8209, 2048}, {2500, 8192}, {1031, 16384}, {4300, 4080}, {4201, 3999}}) {
      CAPTURE(rows, columns, dtype);
      require_codes_of_reference(random_matrix(rows, columns, dtype, /*special=*/true), Layout{});
    }
  }
}

TEST_CASE("sums and results of the back ends for CUDA are the reference's and the formula's", "[cuda][numbers]") {
  SKIP_UNLESS_CUDA();
  const std::string backend = GENERATE("cublaslt", "cutlass", "auto");
  if (!usable(backend)) SKIP("this build has no back end " << backend << " for this GPU");
  const te_int8::detail::BackendScope scope(te_int8::detail::parse_backend(backend));
  torch::manual_seed(82);
  int64_t i = 0;
  for (const auto& [rows, depth] : matrices_for_cuda()) {
    const int64_t columns = i % 7 == 0 ? i % 200 : 1 + i * 13 % 71;
    const auto layout = static_cast<Layout>(i % 3 == 0 ? 0 : i % kLayouts);
    const auto dtype = kFloats[static_cast<std::size_t>(i / 7) % kFloats.size()];
    CAPTURE(backend, rows, depth, columns, dtype, static_cast<int>(layout));
    const auto a = lay_out(random_codes(rows, depth), layout), b = lay_out(random_codes(columns, depth), layout);
    if (depth <= 131'071) {
      REQUIRE(same(ops::scaled_mm(a, b, {}, {}, {}, at::kInt), reference::scaled_mm(a, b, {}, {}, {}, at::kInt)));
      const auto a_scales = i % 3 == 0 ? Optional() : Optional(torch::rand({i % 3 == 1 ? rows : 1}));
      const auto b_scales = i % 5 == 0 ? Optional() : Optional(torch::rand({i % 5 == 1 ? 1 : columns}));
      const auto bias = i % 2 == 0 ? Optional() : Optional(torch::randn({columns}).to(kFloats[static_cast<std::size_t>(i) / 2 % 4]));
      REQUIRE(same(ops::scaled_mm(a, b, a_scales, b_scales, bias, dtype), formula(a, b, a_scales, b_scales, bias, dtype)));
    } else {
      REQUIRE(same(ops::scaled_mm(a, b), reference::scaled_mm(a, b, {}, {}, {}, at::kFloat)));
    }
    ++i;
  }
}

TEST_CASE("large products are the reference's", "[cuda][numbers]") {
  SKIP_UNLESS_CUDA();
  torch::manual_seed(83);
  for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {4096, 1024, 2048}, {2049, 1031, 515}, {1, 4096, 4096}, {17, 2048, 8192}, {64, 8192, 1024}}) {
    const auto a = random_codes(m, k), b = random_codes(n, k);
    CAPTURE(m, n, k);
    CHECK(same(ops::scaled_mm(a, b, {}, {}, {}, at::kInt), reference::scaled_mm(a, b, {}, {}, {}, at::kInt)));
  }
}

TEST_CASE("a layer of few rows in one kernel gives what its codes and their product give", "[cuda][numbers]") {
  SKIP_UNLESS_CUDA();
  torch::manual_seed(85);
  int64_t i = 0, in_one_kernel = 0;
  for (const int64_t depth : {16, 48, 112, 128, 144, 1008, 2032, 2048, 4080, 4096, 4112}) {
    for (const int64_t columns : {1, 7, 8, 9, 127, 1056, 1064, 5000}) {
      for (const int64_t rows : {1 + i % 9, int64_t{1}, int64_t{8}}) {
        const auto dtype = kFloats[static_cast<std::size_t>(i) % kFloats.size()];
        const auto out = kFloats[static_cast<std::size_t>(i / 3) % kFloats.size()];
        const auto layout = static_cast<Layout>(i % 4 != 0 ? 0 : i % kLayouts);
        CAPTURE(rows, columns, depth, dtype, out, static_cast<int>(layout));
        const auto x = lay_out(random_matrix(rows, depth, dtype, /*special=*/true), layout);
        const auto codes = random_codes(columns, depth);
        const auto scales = torch::rand({i % 5 == 0 ? 1 : columns});
        const auto bias = i % 2 == 0 ? Optional() : Optional(torch::randn({columns}).to(kFloats[static_cast<std::size_t>(i) / 2 % 4]));
        const auto [x_codes, x_scales] = ops::quantize_rows(x);
        if (te_int8::detail::fits_linear_of_few_rows(x, codes, scales, bias)) ++in_one_kernel;
        REQUIRE(same(
            ops::linear_prequantized(x, codes, scales, bias, {}, out),
            ops::scaled_mm(x_codes, codes, x_scales, scales, bias, out)));
        ++i;
      }
    }
  }
  CHECK(in_one_kernel > 100);
}

TEST_CASE("codes made inside of a kernel are for nobody who needs them later", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  torch::manual_seed(86);
  nn::Linear layer(256, 64);
  const auto x = torch::randn({4, 256});
  const auto trained = [&] {
    const AutocastGuard guard(layer, Mode::QAT);
    return layer->forward(x);
  }();
  trained.sum().backward();
  REQUIRE(layer->weight.grad().defined());
  const torch::NoGradGuard no_grad;
  const AutocastGuard guard(layer, Mode::Inference);
  CHECK(same(layer->forward(x), trained.detach()));
  CHECK(same(layer->forward(x.view({2, 2, 256})).view({4, 64}), trained.detach()));
}

TEST_CASE("two threads on two streams compute at once", "[cuda][numbers]") {
  SKIP_UNLESS_CUDA();
  torch::manual_seed(84);
  const auto x = torch::randn({300, 517}), w = torch::randn({129, 517});
  const auto run = [](const Tensor& values, const Tensor& weight) {
    const auto [a, a_scales] = ops::quantize_rows(values);
    const auto [b, b_scales] = ops::quantize_rows(weight);
    return ops::scaled_mm(a, b, a_scales, b_scales, {}, at::kBFloat16);
  };
  const auto expected = run(x, w);
  const auto guard_impl = c10::impl::VirtualGuardImpl(at::kCUDA);
  guard_impl.synchronizeDevice(test_device().index() < 0 ? 0 : test_device().index());
  std::vector<std::thread> threads;
  std::vector<int> wrong(2, 0);
  for (std::size_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      const auto stream = guard_impl.getStreamFromGlobalPool(x.device(), false);
      const c10::StreamGuard on(stream);
      for (int i = 0; i < 50; ++i) {
        if (!same(run(x, w), expected)) ++wrong[t];
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>{0, 0});
}

TEST_CASE("each tensor is computed on its own GPU, whichever is the current one", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  if (torch::cuda::device_count() < 2) SKIP("needs two GPUs");
  torch::manual_seed(88);
  const torch::NoGradGuard no_grad;
  nn::Linear layer(512, 256);
  const auto x = torch::randn({300, 512});
  std::vector<Tensor> results;
  for (const auto index : {0, 1, 0}) {
    const c10::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
    layer->to(device);
    const AutocastGuard guard(layer, Mode::Inference);
    std::vector<Tensor> rows;
    for (const int64_t count : {1, 8, 40, 300}) {
      rows.push_back(layer->forward(x.narrow(0, 0, count).to(device)));
      CHECK(rows.back().device() == device);
    }
    const auto [r, rs, c, cs, none] = ops::quantize_rows_and_columns(x.to(device));
    rows.push_back(r.mul(rs.unsqueeze(1)));
    rows.push_back(c.mul(cs.unsqueeze(1)).t());
    for (auto& values : rows) results.push_back(values.cpu());
  }
  const std::size_t each = results.size() / 3;
  for (std::size_t i = each; i < results.size(); ++i) CHECK(same(results[i], results[i % each]));
}

TEST_CASE("\"auto\" computes by kernels for CUDA on a GPU", "[cuda][guard]") {
  SKIP_UNLESS_CUDA();
  nn::Linear layer(64, 32);
  const auto report = [&](const std::string& backend) {
    const AutocastGuard guard(layer, Mode::QAT, Recipe().backend(backend));
    layer->forward(torch::randn({4, 64}));
    return line_of(guard.report(), "").backend;
  };
  CHECK(report("reference") == "reference");
  for (const std::string name : {"cutlass", "cublaslt"}) {
    if (usable(name)) CHECK(report(name) == name);
  }
  CHECK(report("auto") == (usable("cutlass") ? "cutlass" : usable("cublaslt") ? "cublaslt" : "reference"));
}
