// Codes by column, of values and of codes, in every way that kernels make them.
#include <limits>
#include <utility>
#include <vector>

#include "../../kernels/quantize.h"
#include "host_reference.h"

using namespace te_int8_kernel_test;

namespace {

template <typename T>
void require_codes_by_column(int64_t rows, int64_t columns, std::size_t misplaced_codes = 0) {
  CAPTURE(rows, columns, sizeof(T), misplaced_codes);
  const auto matrix = random_matrix<T>(rows, columns, /*strange=*/true);
  const Device<T> x(as<T>(matrix));
  const Device<int8_t> codes_t(size_of(rows, columns), misplaced_codes);
  const Device<float> scales_t(size_of(columns, 1));
  const Device<uint8_t> workspace(quantize_columns_workspace(columns));
  check(quantize_columns(kType<T>, x.get(), rows, columns, workspace.get(), codes_t.get(), scales_t.get(), nullptr));
  require_same(codes_t, scales_t, codes_of(matrix.transposed()));
}

/// By how many elements tensors are off their alignment.
struct Misplaced {
  std::size_t codes = 0, scales = 0, codes_t = 0;
};

/// Codes by row that are made into codes by column, and the results.
class CodesOfCodes {
 public:
  /// As many scales as rows, or one.
  CodesOfCodes(int64_t rows, int64_t columns, const std::vector<float>& scales, Misplaced misplaced = {})
      : rows_(rows), columns_(columns), one_scale_(scales.size() == 1 && rows != 1), values_(values_of_codes(rows * columns)),
        host_scales_(scales), codes_(values_, misplaced.codes), scales_(scales, misplaced.scales),
        codes_t_(values_.size(), misplaced.codes_t), scales_t_(size_of(columns, 1)),
        workspace_(quantize_columns_workspace(columns)) {}

  cudaError_t launch(cudaStream_t stream) const {
    return requantize_columns(
        codes_.get(), scales_.get(), one_scale_, rows_, columns_, workspace_.get(), codes_t_.get(), scales_t_.get(), stream);
  }
  /// Of the last launch, which are spoilt after.
  void require_results() const {
    Matrix products{rows_, columns_, {}};
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const std::size_t row = one_scale_ ? 0 : i / static_cast<std::size_t>(columns_);
      products.values.push_back(static_cast<float>(values_[i]) * host_scales_[row]);
    }
    require_same(codes_t_, scales_t_, codes_of(products.transposed()));
    spoil(codes_t_, scales_t_);
  }

 private:
  /// -128, which quantization never gives, is a code as others are.
  static std::vector<int8_t> values_of_codes(int64_t count) {
    auto values = random_codes(count);
    if (!values.empty()) values.back() = -128;
    return values;
  }

  int64_t rows_, columns_;
  bool one_scale_;
  std::vector<int8_t> values_;
  std::vector<float> host_scales_;
  Device<int8_t> codes_;
  Device<float> scales_;
  Device<int8_t> codes_t_;
  Device<float> scales_t_;
  Device<uint8_t> workspace_;
};

void require_codes_of_codes(
    int64_t rows, int64_t columns, const std::vector<float>& scales, Misplaced misplaced = {}) {
  CAPTURE(rows, columns, scales.size(), misplaced.codes, misplaced.scales, misplaced.codes_t);
  const CodesOfCodes codes(rows, columns, scales, misplaced);
  check(codes.launch(nullptr));
  codes.require_results();
}

/// Codes by row and by column of a matrix, with sums of its columns or without.
class BothCodes {
 public:
  BothCodes(Type type, const void* x, int64_t rows, int64_t columns)
      : type_(type), x_(x), rows_(rows), columns_(columns), codes_(size_of(rows, columns)), codes_t_(size_of(rows, columns)),
        scales_(size_of(rows, 1)), scales_t_(size_of(columns, 1)), sums_(size_of(columns, 1)),
        workspace_(quantize_rows_and_columns_workspace(rows, columns, true)) {}

  cudaError_t launch(bool with_sums, cudaStream_t stream) const {
    return quantize_rows_and_columns(
        type_, x_, rows_, columns_, sms_, workspace_.get(), codes_.get(), scales_.get(), codes_t_.get(), scales_t_.get(),
        with_sums ? sums_.get() : nullptr, stream);
  }
  /// Of the last launch, which are spoilt after.
  void require_codes(const Codes& by_row, const Codes& by_column) const {
    require_same(codes_, scales_, by_row);
    require_same(codes_t_, scales_t_, by_column);
    spoil(codes_, scales_, codes_t_, scales_t_);
  }
  void require_sums(const Matrix& matrix) const { require_sums_of_columns(sums_, matrix); }

 private:
  Type type_;
  const void* x_;
  int64_t rows_, columns_;
  int sms_ = multiprocessors();
  Device<int8_t> codes_, codes_t_;
  Device<float> scales_, scales_t_, sums_;
  Device<uint8_t> workspace_;
};

}  // namespace

TEST_CASE("kernels: codes by column, of rows that blocks of a cluster share", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    for (const int64_t rows : {4, 132, 516, 1028, 4100, 8192, 8196, 12'300, 16'384, 16'388}) {
      for (const int64_t columns : {8, 72, 160}) require_codes_by_column<T>(rows, columns);
    }
    for (const int64_t rows : {512, 516}) {  // of so many columns, one block and two
      require_codes_by_column<T>(rows, sizeof(T) == 4 ? 8192 : 16'384);
    }
  });
}

TEST_CASE("kernels: codes by column, to any address, and in several groups", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    require_codes_by_column<T>(16'388, 640);  // the last group is smaller
    for (const int64_t rows : {129, 257, 258, 259, 260}) {
      for (const int64_t columns : {64, 67}) {
        for (const std::size_t misplaced : {0, 1, 2, 3}) require_codes_by_column<T>(rows, columns, misplaced);
      }
    }
  });
}

TEST_CASE("kernels: codes by row and by column at once, of a matrix large enough for it", "[kernels]") {
  SKIP_WITHOUT_GPU();
  for_each_type([&](auto t) {
    using T = decltype(t);
    const auto rows_of = [](int64_t mebibytes, int64_t columns) {
      return (mebibytes << 20) / (columns * static_cast<int64_t>(sizeof(T)));
    };
    const int64_t widest = sizeof(T) == 4 ? 8192 : 16'384;
    std::vector<std::pair<int64_t, int64_t>> shapes{{rows_of(32, 4096) + 4, 4096}, {rows_of(64, widest), widest}};
    for (const int64_t columns : {int64_t{2048}, int64_t{4080}, widest}) shapes.emplace_back(rows_of(32, columns) + 3, columns);
    for (const auto& [rows, columns] : shapes) {
      CAPTURE(rows, columns, sizeof(T));
      const auto matrix = random_matrix<T>(rows, columns, /*strange=*/true);
      const auto by_row = codes_of(matrix), by_column = codes_of(matrix.transposed());
      const Device<T> x(as<T>(matrix));
      const BothCodes both(kType<T>, x.get(), rows, columns);
      for (const bool with_sums : {false, true}) {
        check(both.launch(with_sums, nullptr));
        both.require_codes(by_row, by_column);
      }
      both.require_sums(matrix);
    }
  });
}

TEST_CASE("kernels: codes of codes by column", "[kernels]") {
  SKIP_WITHOUT_GPU();
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for (const auto& [rows, columns] : kShapes) {
    require_codes_of_codes(rows, columns, random_scales(1));
    require_codes_of_codes(rows, columns, random_scales(rows));
  }
  for (const int64_t columns : {1100, 1104}) {  // two groups of strips, the second smaller
    for (const int64_t rows : {16'387, 16'388}) require_codes_of_codes(rows, columns, random_scales(rows));
  }
  for (const int64_t columns : {64, 67}) {
    const auto scales = random_scales(300);
    require_codes_of_codes(300, columns, scales, {.codes = 1});
    require_codes_of_codes(300, columns, scales, {.scales = 1});
    require_codes_of_codes(300, columns, scales, {.codes_t = 1});
    for (const float scale : {5e-39F, -1.3e-3F, 0x1.fffffep103F, 0x1p104F, 3e36F, 0.0F, kInfinity, kNan}) {
      CAPTURE(scale);
      require_codes_of_codes(300, columns, {scale});
      for (const std::size_t row : {1, 77, 200}) {
        auto one_strange = scales;
        one_strange[row] = scale;
        require_codes_of_codes(300, columns, one_strange);
      }
    }
  }
}

TEST_CASE("kernels: codes by row and by column, captured into a graph", "[kernels][captured]") {
  SKIP_WITHOUT_GPU();
  // By clusters, by a pass that finds maxima and one that starts ahead, and by groups of strips.
  const auto small = random_matrix<float>(516, 72, /*strange=*/true), large = random_matrix<float>(2051, 4096, /*strange=*/true);
  const Device<float> small_x(as<float>(small)), large_x(as<float>(large));
  const BothCodes of_small(Type::Float, small_x.get(), small.rows, small.columns);
  const BothCodes of_large(Type::Float, large_x.get(), large.rows, large.columns);
  const CodesOfCodes of_codes(16'388, 1104, random_scales(16'388));
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  const std::vector<cudaError_t> launched{
      of_small.launch(false, stream), of_large.launch(false, stream), of_codes.launch(stream)};
  check(cudaStreamEndCapture(stream, &graph));
  for (const auto error : launched) check(error);
  check(cudaGraphInstantiate(&ready, graph, 0));
  for (int replay = 0; replay < 2; ++replay) {
    check(cudaGraphLaunch(ready, stream));
    check(cudaStreamSynchronize(stream));
    of_small.require_codes(codes_of(small), codes_of(small.transposed()));
    of_large.require_codes(codes_of(large), codes_of(large.transposed()));
    of_codes.require_results();
  }
  check(cudaGraphExecDestroy(ready));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
}
