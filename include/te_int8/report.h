// Report: what a scope did, layer by layer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iomanip>
#include <ostream>
#include <string>
#include <vector>

#include <te_int8/config.h>

namespace te_int8::inline v0 {

struct LayerReport {
  std::string
      name;  ///< qualified; an attention's projections are `<name>.in_proj`, `<name>.out_proj`
  std::string type;     ///< the module's C++ class
  std::string action;   ///< "quantized" or "full precision"
  std::string reason;   ///< why it, or some of its calls, are in full precision, or where the calls of a tied weight count
  std::string backend;  ///< who computes it; empty where not quantized
  bool bias_fused;      ///< has a bias, was called, and each call added it in the matmul's epilogue
  int64_t calls;        ///< matmuls caught so far, of all threads; attention may take several a forward
};

struct Report {
  std::vector<LayerReport> layers;
};

/// Prints a table, and below it a line for quantized layers that no call has reached.
inline std::ostream& operator<<(std::ostream& out, const Report& report) {
  std::size_t name_width = 5, type_width = 4, backend_width = 7;
  std::size_t never_called = 0;
  for (const auto& layer : report.layers) {
    name_width = std::max(name_width, layer.name.size());
    type_width = std::max(type_width, layer.type.size());
    backend_width = std::max(backend_width, layer.backend.size());
    if (layer.action == "quantized" && layer.calls == 0 && layer.reason.empty()) ++never_called;
  }
  const auto row = [&](const auto& name, const auto& type, const auto& backend, const auto& calls,
                       const auto& fused, const auto& action, const auto& reason) {
    out << std::left << std::setw(static_cast<int>(name_width + 2)) << name
        << std::setw(static_cast<int>(type_width + 2)) << type
        << std::setw(static_cast<int>(backend_width + 2)) << backend << std::right << std::setw(7)
        << calls << "  " << std::left << std::setw(12) << fused << action;
    if (!std::string(reason).empty()) out << ": " << reason;
    out << '\n';
  };
  const auto flags = out.flags();
  row("layer", "type", "backend", "calls", "fused bias", "action", "");
  for (const auto& layer : report.layers) {
    row(layer.name.empty() ? "(root)" : layer.name, layer.type,
        layer.backend.empty() ? "-" : layer.backend, layer.calls, layer.bias_fused ? "yes" : "-",
        layer.action, layer.reason);
  }
  out.flags(flags);
  if (never_called > 0) {
    out << "warning: " << never_called
        << " quantized layer(s) were never called inside the scope\n";
  }
  return out;
}

}  // namespace te_int8::inline v0
