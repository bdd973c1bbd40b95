// Diagnostics: what quantization does to each layer, so that one sees which layer suffers and gives it another rule.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include <te_int8/config.h>

namespace te_int8::inline v0 {

namespace detail {
struct DiagnosticsFile;
}

/// Writes a CSV file about the quantized layers of all scopes. Nothing is measured but while a Measurement lives:
///
///   te_int8::Diagnostics diagnostics("diagnostics.csv");
///   for (int64_t step = 0; ...) {
///     const auto measurement = step % 100 == 0 ? diagnostics.measure(step) : te_int8::Diagnostics::Measurement();
///     ...  // forward and backward
///   }
///
/// Columns: step, layer, tensor, sqnr_db, zero_codes, cosine. A call of a layer in INT8 gives a row for each of
///   x, weight          codes of the forward, if its output is in INT8
///   dy_rows            codes of dy for dx, if grad_input is in INT8
///   dy_columns         codes of dy for dW, if grad_weight is in INT8
///   dx, dweight        gradients
/// sqnr_db is 10 log10(sum v^2 / sum (v - v^)^2) of values v and what their codes stand for v^, in decibels; zero_codes is
/// the share of codes that are 0; cosine is that of a gradient and the one of exact operands, dy W or dy^T x in fp32. What
/// does not apply is empty. A row or column with a NaN or an infinity makes them nan.
///
/// Measuring waits for the device, computes each gradient a second time in fp32 and holds x until then: it is for some steps,
/// not for all. It changes no result. It cannot be captured into a CUDA graph: expect an error.
class TE_INT8_API Diagnostics {
 public:
  /// Replaces a file of that name. Raises std::system_error where it cannot be written, now or later.
  explicit Diagnostics(const std::string& path);

  class TE_INT8_API Measurement {
   public:
    Measurement() = default;  ///< measures nothing
    ~Measurement();
    Measurement(Measurement&&) noexcept = default;
    Measurement& operator=(Measurement&&) = delete;

   private:
    friend class Diagnostics;
    explicit Measurement(std::shared_ptr<detail::DiagnosticsFile> file) : file_(std::move(file)) {}
    std::shared_ptr<detail::DiagnosticsFile> file_;
  };

  /// Measures forwards that begin while the result lives, and their backwards, also later ones. One at a time in a process;
  /// raises while there is another.
  [[nodiscard]] Measurement measure(int64_t step);

 private:
  std::shared_ptr<detail::DiagnosticsFile> file_;
};

}  // namespace te_int8::inline v0
