// What the tests of the guard share: models, what can be seen of a model, and the result that a
// quantized layer has to give, computed without any scope.
#pragma once

#include <algorithm>
#include <exception>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include <te_int8/te_int8.h>

#include "support.h"
#include "watching.h"

namespace te_int8_test {

namespace nn = torch::nn;
using te_int8::AutocastGuard;
using te_int8::Mode;
using te_int8::Precision;
using te_int8::Recipe;
using torch::Tensor;

// ---- The result of a quantized layer --------------------------------------------------------------

/// x W^T + b of a layer with one scale per row, from the operations alone.
inline Tensor int8_result(
    const Tensor& x, const Tensor& weight, const Tensor& bias, at::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  const auto [x_codes, x_scales] = te_int8::ops::quantize_rows(x.detach().reshape({rows, x.size(-1)}));
  const auto [w_codes, w_scales] = te_int8::ops::quantize_rows(weight.detach());
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  const auto added = bias.defined() ? std::optional(bias.detach()) : std::nullopt;
  return te_int8::ops::scaled_mm(x_codes, w_codes, x_scales, w_scales, added, dtype).view(sizes);
}
inline Tensor int8_result(const nn::LinearImpl& layer, const Tensor& x) {
  return int8_result(x, layer.weight, layer.bias, x.scalar_type());
}

/// Dequantized as the definition of straight-through gradients says: float(code) * scale.
inline Tensor dequantized(const Tensor& x) {
  const torch::NoGradGuard no_grad;
  const auto [codes, scales] = te_int8::ops::quantize_rows(x.detach());
  return codes.to(torch::kFloat) * scales.unsqueeze(-1);
}

/// The values of `quantized` with the gradient of `x`.
inline Tensor straight_through(const Tensor& x) { return dequantized(x) + (x - x.detach()); }

/// What a quantized layer computes, by plain LibTorch operations in fp32.
inline Tensor fake_quantized_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const auto y = straight_through(x).matmul(straight_through(weight).t());
  return bias.defined() ? y + bias : y;
}

// ---- Models ---------------------------------------------------------------------------------------

/// Layers as typed members, as most LibTorch programs have them.
struct MlpImpl : nn::Module {
  explicit MlpImpl(int64_t width = 16) {
    fc1 = register_module("fc1", nn::Linear(width, 2 * width));
    fc2 = register_module("fc2", nn::Linear(2 * width, width));
    head = register_module("head", nn::Linear(nn::LinearOptions(width, 4).bias(false)));
  }
  Tensor forward(const Tensor& x) { return head(torch::relu(fc2(torch::relu(fc1(x))))); }
  nn::Linear fc1{nullptr}, fc2{nullptr}, head{nullptr};
};
TORCH_MODULE(Mlp);

/// A model whose only child is one Linear.
struct OneLayerImpl : nn::Module {
  explicit OneLayerImpl(int64_t in = 8, int64_t out = 4) {
    fc = register_module("fc", nn::Linear(in, out));
  }
  Tensor forward(const Tensor& x) { return fc(x); }
  nn::Linear fc{nullptr};
};
TORCH_MODULE(OneLayer);

/// Two Linears that may share what the test lets them share.
struct TwoLayersImpl : nn::Module {
  explicit TwoLayersImpl(int64_t in = 8, int64_t out = 4) {
    first = register_module("first", nn::Linear(in, out));
    second = register_module("second", nn::Linear(in, out));
  }
  nn::Linear first{nullptr}, second{nullptr};
};
TORCH_MODULE(TwoLayers);

// ---- What can be seen of a model ------------------------------------------------------------------

inline std::string saved_bytes(const std::shared_ptr<nn::Module>& model) {
  std::ostringstream stream;
  torch::save(model, stream);
  return stream.str();
}

inline std::string printed(const nn::Module& model) {
  std::ostringstream stream;
  stream << model;
  return stream.str();
}

/// Everything that a scope must put back: the modules by name and identity, the parameters by name,
/// identity, value and requires_grad.
class Snapshot {
 public:
  explicit Snapshot(const nn::Module& model) : modules_(model.named_modules("", false)) {
    for (const auto& item : model.named_parameters()) {
      parameters_.push_back({item.key(), item.value(), item.value().detach().clone()});
      requires_grad_.push_back(item.value().requires_grad());
    }
  }
  bool holds(const nn::Module& model) const { return holds_tree(model) && holds_parameters(model); }
  bool holds_tree(const nn::Module& model) const {
    const auto now = model.named_modules("", false);
    return now.keys() == modules_.keys() && now.values() == modules_.values();
  }
  bool holds_parameters(const nn::Module& model) const {
    const auto now = model.named_parameters();
    if (now.size() != parameters_.size()) return false;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const auto& [name, parameter, values] = parameters_[i];
      if (now[i].key() != name || !now[i].value().is_same(parameter) ||
          parameter.requires_grad() != requires_grad_[i] || !same(parameter.detach(), values)) {
        return false;
      }
    }
    return true;
  }

 private:
  struct Parameter {
    std::string name;
    Tensor parameter, values;
  };
  torch::OrderedDict<std::string, std::shared_ptr<nn::Module>> modules_;
  std::vector<Parameter> parameters_;
  std::vector<bool> requires_grad_;
};

inline te_int8::LayerReport line_of(const te_int8::Report& report, const std::string& name) {
  for (const auto& line : report.layers) {
    if (line.name == name) return line;
  }
  FAIL("no line '" << name << "' in the report");
  return {};
}
inline int64_t calls_of(const AutocastGuard& guard, const std::string& name) {
  return line_of(guard.report(), name).calls;
}
inline int64_t all_calls(const AutocastGuard& guard) {
  int64_t calls = 0;
  for (const auto& line : guard.report().layers) calls += line.calls;
  return calls;
}

// ---- Functions ------------------------------------------------------------------------------------

using Function = std::function<Tensor(const Tensor&)>;

/// Those whose codes come with what they give.
inline const std::vector<std::pair<std::string, Function>>& functions() {
  static const std::vector<std::pair<std::string, Function>> all = {
      {"gelu", [](const Tensor& x) { return at::gelu(x); }},
      {"gelu tanh", [](const Tensor& x) { return at::gelu(x, "tanh"); }},
      {"relu", [](const Tensor& x) { return at::relu(x); }},
      {"silu", [](const Tensor& x) { return at::silu(x); }},
  };
  return all;
}

// ---- Running --------------------------------------------------------------------------------------

/// Runs f as programs run models: "grad", "no grad", "inference" or "autocast" (to bf16).
template <typename Function>
void in_context(const std::string& context, Function f) {
  if (context == "no grad") {
    const torch::NoGradGuard no_grad;
    f();
  } else if (context == "inference") {
    const c10::InferenceMode inference_mode;
    f();
  } else if (context == "autocast") {
    const Bf16Autocast autocast;
    f();
  } else {
    f();
  }
}

/// Runs f in a thread of its own, to its end; what it throws is thrown here.
template <typename Function>
void in_thread(Function f) {
  std::exception_ptr error;
  std::thread([&] {
    const TestDevice same_device;
    try {
      f();
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
}

}  // namespace te_int8_test
