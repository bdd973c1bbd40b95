// What a scope finds in a module tree: every weight that a matmul multiplies by, under its name.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <c10/util/Type.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>

#include <te_int8/quantized_linear.h>

namespace te_int8::inline v0::detail {

/// A place in the tree: the child `key` of `parent`.
struct Slot {
  std::shared_ptr<torch::nn::Module> parent;
  std::string key;
  std::shared_ptr<torch::nn::Module> child;  ///< what was there
};

/// A weight [N,K] with its bias, and the module that owns them.
struct Layer {
  std::shared_ptr<torch::nn::LinearImpl> linear;                 ///< a Linear, or
  std::shared_ptr<torch::nn::MultiheadAttentionImpl> attention;  ///< an attention's in-projection
  std::vector<std::string> names;  ///< qualified; several where the module is registered twice
  std::vector<Slot> slots;         ///< where a replacement goes; none for the root
  bool replaceable = false;        ///< exactly LinearImpl; a subclass keeps its type and is routed

  const torch::nn::Module& owner() const {
    return linear ? static_cast<const torch::nn::Module&>(*linear) : *attention;
  }
  const torch::Tensor& weight() const {
    return linear ? linear->weight : attention->in_proj_weight;
  }
  const torch::Tensor& bias() const { return linear ? linear->bias : attention->in_proj_bias; }
};

/// A module with parameters of its own that no scope quantizes.
struct OtherModule {
  std::string name, type, reason;
};

struct ModelLayers {
  std::vector<Layer> layers;
  std::vector<OtherModule> others;
};

/// A pointer to a module that need not be owned by a shared_ptr: a root may live on the stack.
inline std::shared_ptr<torch::nn::Module> pointer_to(torch::nn::Module& module) {
  if (auto owned = module.weak_from_this().lock()) {
    return std::static_pointer_cast<torch::nn::Module>(owned);
  }
  return {std::shared_ptr<void>(), &module};
}

/// Walks the tree below a root, once per module however often it is registered.
class LayerFinder {
 public:
  static ModelLayers find(torch::nn::Module& root) {
    LayerFinder finder;
    finder.visit(pointer_to(root), "", nullptr);
    return std::move(finder.found_);
  }

 private:
  static std::string join(const std::string& prefix, const std::string& key) {
    return prefix.empty() ? key : prefix + '.' + key;
  }

  void visit(
      const std::shared_ptr<torch::nn::Module>& child, const std::string& name, const Slot* slot) {
    auto target = child;
    if (const auto* quantized = dynamic_cast<const QuantizedLinearImpl*>(target.get())) {
      if (!quantized->belongs_to_scope()) {
        add_other(name, *target, "quantizes itself, whatever the scope says");
        return;
      }
      target = quantized->original();  // an outer scope is over it
    }
    if (auto linear = std::dynamic_pointer_cast<torch::nn::LinearImpl>(target)) {
      auto& layer = layer_of(target.get());
      layer.replaceable = typeid(*linear) == typeid(torch::nn::LinearImpl);
      layer.linear = std::move(linear);
      layer.names.push_back(name);
      if (slot != nullptr) add_slot(layer, *slot);
    } else if (
        auto attention = std::dynamic_pointer_cast<torch::nn::MultiheadAttentionImpl>(target)) {
      if (attention->in_proj_weight.defined() && attention->in_proj_weight.numel() > 0) {
        auto& layer = layer_of(target.get());
        layer.attention = attention;
        layer.names.push_back(join(name, "in_proj"));
      } else {
        add_other(
            join(name, "in_proj"), *target,
            "LibTorch's attention asserts with key or value sizes of their own");
      }
    } else if (!target->named_parameters(/*recurse=*/false).is_empty()) {
      add_other(name, *target, "not a Linear and not an attention projection");
    }
    for (const auto& item : target->named_children()) {
      if (item.value() == nullptr) continue;
      const Slot child_slot{target, item.key(), item.value()};
      visit(item.value(), join(name, item.key()), &child_slot);
    }
  }

  /// A parent that is registered twice comes by twice with the same slot.
  static void add_slot(Layer& layer, const Slot& slot) {
    const auto same = [&](const Slot& s) { return s.parent == slot.parent && s.key == slot.key; };
    if (std::ranges::none_of(layer.slots, same)) layer.slots.push_back(slot);
  }

  Layer& layer_of(const torch::nn::Module* module) {
    const auto [it, added] = index_.try_emplace(module, found_.layers.size());
    if (added) found_.layers.emplace_back();
    return found_.layers[it->second];
  }
  void add_other(const std::string& name, const torch::nn::Module& other, const char* reason) {
    if (!others_.insert(&other).second) return;
    found_.others.push_back({name, c10::demangle(typeid(other).name()), reason});
  }

  ModelLayers found_;
  std::unordered_map<const torch::nn::Module*, std::size_t> index_;
  std::unordered_set<const torch::nn::Module*> others_;
};

}  // namespace te_int8::inline v0::detail
