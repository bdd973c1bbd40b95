#include <te_int8/diagnostics.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <mutex>
#include <optional>
#include <sstream>
#include <system_error>
#include <utility>

#include <torch/torch.h>

#include <te_int8/detail/call_observer.h>
#include <te_int8/linear_function.h>

namespace te_int8::inline v0 {

struct detail::DiagnosticsFile {
  explicit DiagnosticsFile(const std::string& name) : path(name) {
    errno = 0;
    stream.open(path, std::ios::out | std::ios::trunc);
    write("step,layer,tensor,sqnr_db,zero_codes,cosine");
  }

  void write(const std::string& line) {
    const std::lock_guard lock(mutex);
    stream << line << std::endl;
    if (!stream) throw std::system_error(errno, std::generic_category(), "te_int8::Diagnostics: cannot write " + path);
  }

  const std::string path;
  std::mutex mutex;
  std::ofstream stream;
  std::atomic<int64_t> step = 0;
};

namespace {

using at::Tensor;
using detail::DiagnosticsFile, detail::Operand, detail::as_rows;

double sum_of_squares(const Tensor& x) { return x.square().sum(at::kDouble).item<double>(); }

struct Row {
  const char* tensor;
  std::optional<double> sqnr_db = {}, zero_codes = {}, cosine = {};
};

/// `operand` has the codes of x [*,C]; transposed where they were made by column.
Row of_codes(const char* tensor, const Tensor& x, const Operand& operand, bool by_column) {
  const auto rows = as_rows(x).to(at::kFloat), values = by_column ? rows.t() : rows;
  const double noise = sum_of_squares(values - operand.dequantized(at::kFloat));
  const double zeros = operand.data().eq(0).sum().item<double>();
  return {
      .tensor = tensor,
      .sqnr_db = 10 * std::log10(sum_of_squares(values) / noise),
      .zero_codes = zeros / static_cast<double>(operand.data().numel())};
}

Row of_gradient(const char* tensor, const Tensor& got, const Tensor& exact) {
  const double product = (got.to(at::kFloat) * exact).sum(at::kDouble).item<double>();
  return {.tensor = tensor, .cosine = product / std::sqrt(sum_of_squares(got.to(at::kFloat)) * sum_of_squares(exact))};
}

/// The file that is written to now.
struct Current {
  std::mutex mutex;
  std::atomic<bool> any = false;  ///< spares others the lock
  std::shared_ptr<DiagnosticsFile> file;
};
Current& current() {
  static auto* one = new Current;  // never destroyed: a backward may still come while the process ends
  return *one;
}

/// Writes what it sees to a file.
class Writer final : public detail::CallObserver {
 public:
  Writer(std::shared_ptr<DiagnosticsFile> file, std::string layer)
      : file_(std::move(file)), step_(file_->step), layer_(std::move(layer)) {}

  void saw_forward(const Tensor& x, const Operand* x_operand, const Tensor& weight, const Operand* weight_operand) override {
    const Undisturbed undisturbed(x);
    x_ = as_rows(x.detach());
    weight_ = weight.detach();
    if (has_row_codes(x_operand)) write(of_codes("x", x_, *x_operand, false));
    if (has_row_codes(weight_operand)) write(of_codes("weight", weight_, *weight_operand, false));
  }

  void saw_backward(
      const Tensor& dy, const Operand* by_row, const Operand* by_column, const Tensor& dx, const Tensor& dw) override {
    const Undisturbed undisturbed(dy);
    if (by_row != nullptr) write(of_codes("dy_rows", dy, *by_row, false));
    if (by_column != nullptr) write(of_codes("dy_columns", dy, *by_column, true));
    const auto exact = dy.to(at::kFloat);
    if (dx.defined()) write(of_gradient("dx", as_rows(dx), exact.matmul(weight_.to(at::kFloat))));
    if (dw.defined()) write(of_gradient("dweight", dw, exact.t().matmul(x_.to(at::kFloat))));
  }

 private:
  struct Undisturbed {
    explicit Undisturbed(const Tensor& x) {
      TORCH_CHECK(
          detail::capture_of(x.device()) == 0,
          "te_int8::Diagnostics: expected no CUDA graph to be captured while it measures, got one");
    }
    at::NoGradGuard no_grad;
    detail::PlainTensorOps plain;
  };

  static bool has_row_codes(const Operand* operand) {
    return operand != nullptr && operand->data().scalar_type() == at::kChar && operand->data().dim() > 0 &&
           operand->form() != detail::OperandForm::ColumnCodes;
  }

  void write(const Row& row) {
    std::ostringstream line;
    line << step_ << ',' << layer_ << ',' << row.tensor;
    for (const auto& value : {row.sqnr_db, row.zero_codes, row.cosine}) {
      line << ',';
      if (value) line << *value;
    }
    file_->write(line.str());
  }

  std::shared_ptr<DiagnosticsFile> file_;
  int64_t step_;
  std::string layer_;
  Tensor x_, weight_;
};

}  // namespace

Diagnostics::Diagnostics(const std::string& path) : file_(std::make_shared<DiagnosticsFile>(path)) {}

Diagnostics::Measurement Diagnostics::measure(int64_t step) {
  auto& [mutex, any, file] = current();
  const std::lock_guard lock(mutex);
  TORCH_CHECK(file == nullptr, "te_int8::Diagnostics::measure: expected no other measurement in the process, got one");
  file_->step = step;
  file = file_;
  any = true;
  return Measurement(file_);
}

Diagnostics::Measurement::~Measurement() {
  if (!file_) return;
  auto& [mutex, any, file] = current();
  const std::lock_guard lock(mutex);
  any = false;
  file.reset();
}

std::shared_ptr<detail::CallObserver> detail::observer_of_call(const std::string& layer) {
  auto& [mutex, any, file] = current();
  if (!any.load(std::memory_order_relaxed)) return nullptr;
  const std::lock_guard lock(mutex);
  return file ? std::make_shared<Writer>(file, layer) : nullptr;
}

}  // namespace te_int8::inline v0
