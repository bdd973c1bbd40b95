// The module types that a scope quantizes, and the way to add one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <typeindex>
#include <typeinfo>
#include <utility>
#include <vector>

#include <c10/util/Type.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <te_int8/config.h>
#include <te_int8/detail/replacement.h>

namespace te_int8::inline v0 {

/// What a module does with a weight, which is how a scope catches its calls.
enum class Operation {
  Linear,       ///< y = x W^T (+ b) for W [N,K] or some of its rows: torch::matmul, mm, addmm, linear, and what calls them
  Convolution,  ///< of x [N,C,*] with W [O,C/groups,*], whole (+ b), 1 to 3 spatial dimensions: torch::conv1d, conv2d, conv3d
  Embedding,    ///< rows of W [V,D] by their indices: torch::embedding. Only where Recipe::embeddings asks for it
};

/// A weight of a module.
struct Weight {
  /// `weight`, `bias`: members of the module, which stay where they are while a scope is open (a std::vector that holds
  /// them must not grow). `bias_first`: where the values for this weight begin in `bias`.
  Weight(std::string weight_name, torch::Tensor& weight_member)
      : name(std::move(weight_name)), weight(&weight_member) {}
  Weight(
      std::string weight_name, torch::Tensor& weight_member, torch::Tensor& bias_member,
      int64_t first = 0)
      : name(std::move(weight_name)), weight(&weight_member), bias(&bias_member), bias_first(first) {}
  Weight& of(Operation what) {
    operation = what;
    return *this;
  }

  std::string name;  ///< goes after the module's; empty where the weight is the module's only one
  torch::Tensor* weight;
  torch::Tensor* bias = nullptr;
  int64_t bias_first = 0;
  Operation operation = Operation::Linear;
};

using Weights = std::vector<Weight>;

namespace detail {

inline constexpr std::size_t kOperations = 3;

inline bool has_dimensions_for(Operation operation, int64_t dimensions) {
  return operation == Operation::Convolution ? dimensions >= 3 && dimensions <= 5 : dimensions == 2;
}

/// The reason of a layer whose weight has not the dimensions for its operation.
inline const char* shape_of_weight(Operation operation) {
  return operation == Operation::Convolution ? "its weight has not 3 to 5 dimensions" : "its weight is not a matrix";
}

/// What scopes know of a type of modules.
struct ModuleType {
  std::type_index type;
  std::function<bool(const torch::nn::Module&)> is_base_of;
  std::function<Weights(torch::nn::Module&)> weights = nullptr;  ///< null where scopes leave it in full precision
  /// What takes the place of a module of exactly this type; may be empty.
  std::function<std::shared_ptr<Replacement>(const std::shared_ptr<torch::nn::Module>&)> replacement = nullptr;
  std::string reason = "";      ///< why in full precision
  bool has_weights_only = false;  ///< all its parameters are weights or biases of `weights`
};

TE_INT8_API void register_module_type(ModuleType type);
/// The type of a module, or of the base of it that was registered last; null where there is none.
std::shared_ptr<const ModuleType> module_type_of(const torch::nn::Module& module);

template <typename Module>
ModuleType module_type() {
  return {.type = typeid(Module), .is_base_of = [](const torch::nn::Module& m) {
            return dynamic_cast<const Module*>(&m) != nullptr;
          }};
}
template <typename Module, typename Function>
ModuleType module_type(Function weights) {
  auto type = module_type<Module>();
  type.weights = [weights](torch::nn::Module& m) { return Weights(weights(dynamic_cast<Module&>(m))); };
  return type;
}

}  // namespace detail

/// A copy of a module, of a type derived from the module's own, that stands for it in the module tree while a scope
/// lasts. It has the same parameters, so `to`, `train`, optimizers and serialization see one module. Anything else that
/// the module changes as it runs is changed in the copy and lost with it.
template <typename Module>
class Quantized : public Module, public detail::Replacement {
 public:
  Quantized(std::shared_ptr<Module> original, const std::function<Weights(Module&)>& weights)
      // Copied, not built from options: that would draw random numbers.
      : Module(checked(original)), original_(std::move(original)) {
    const auto here = weights(*this);
    const auto there = weights(*original_);
    TORCH_CHECK_VALUE(
        here.size() == there.size(), "te_int8::Quantized: expected a copy to have the weights of its original, ",
        there.size(), ", got ", here.size());
    for (std::size_t i = 0; i < here.size(); ++i) {
      add_handles(here[i].weight, here[i].bias, there[i].weight, there[i].bias);
    }
  }

  std::shared_ptr<torch::nn::Module> original_module() const override { return original_; }
  const std::shared_ptr<Module>& original() const { return original_; }

  void train(bool on = true) override {
    Module::train(on);
    original_->train(on);
  }
  bool is_training() const noexcept override { return original_->is_training(); }
  void pretty_print(std::ostream& stream) const override {
    print_as_quantized(stream, *original_);
  }

 private:
  static const Module& checked(const std::shared_ptr<Module>& original) {
    TORCH_CHECK_VALUE(
        original != nullptr, "te_int8::Quantized: expected a ", c10::demangle(typeid(Module).name()),
        ", got a null pointer");
    return *original;
  }

  std::shared_ptr<Module> original_;
};

/// Lets scopes quantize a type of modules, and types derived from it: `weights` gives a module's weights, and is called
/// when a scope opens. Calls are caught where the module multiplies by a weight, so nothing else is to be done; a
/// layer's name is the module's, a dot and the weight's.
/// ```
/// struct LowRankImpl : torch::nn::Module {           // y = x D^T U^T + b
///   torch::Tensor forward(const torch::Tensor& x) {
///     return torch::nn::functional::linear(torch::nn::functional::linear(x, down), up, bias);
///   }
///   torch::Tensor down, up, bias;
/// };
/// te_int8::register_module<LowRankImpl>([](LowRankImpl& m) {
///   return te_int8::Weights{{"down", m.down}, {"up", m.up, m.bias}};
/// });
/// ```
/// With a `Replacement`, which is Quantized<Module> or derived from it, modules of exactly this type that have no children
/// are replaced in the module tree for the time of the scope, so that it shows which are quantized.
///
/// Of several types that a module is derived from, the one that was registered last counts. To register a type again
/// replaces what was known; scopes that are open keep what they found. May be called from any thread.
template <typename Module, typename Replacement = void, typename Function>
void register_module(Function weights) {
  static_assert(std::is_base_of_v<torch::nn::Module, Module>, "register_module<Module>: Module is a torch::nn::Module");
  auto type = detail::module_type<Module>(weights);
  if constexpr (!std::is_void_v<Replacement>) {
    static_assert(
        std::is_base_of_v<Quantized<Module>, Replacement>,
        "register_module<Module, Replacement>: Replacement is te_int8::Quantized<Module> or derived from it");
    type.replacement = [weights](const std::shared_ptr<torch::nn::Module>& original) {
      return std::make_shared<Replacement>(std::dynamic_pointer_cast<Module>(original), weights);
    };
  }
  detail::register_module_type(std::move(type));
}

}  // namespace te_int8::inline v0
