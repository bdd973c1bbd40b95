// What a scope finds in a module tree: every weight of a registered type of modules, under its name.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <c10/util/Type.h>
#include <torch/nn/module.h>

#include <te_int8/modules.h>

namespace te_int8::inline v0::detail {

/// A place in the tree: the child `key` of `parent`.
struct Slot {
  std::shared_ptr<torch::nn::Module> parent;
  std::string key;
  std::shared_ptr<torch::nn::Module> child;  ///< what was there
};

/// A module that has weights.
struct Owner {
  std::shared_ptr<torch::nn::Module> module;
  std::shared_ptr<const ModuleType> type;
  std::vector<Slot> slots;  ///< where a replacement goes; none for the root

  /// A module of a derived type keeps its type, and one with children keeps its place, as they are its own; both are
  /// only routed.
  bool replaceable() const {
    return type->replacement != nullptr && !slots.empty() && type->type == typeid(*module) && module->children().empty();
  }
};

/// A weight with its bias, and the module that owns them.
struct Layer {
  std::shared_ptr<const Owner> owner;
  std::size_t place;               ///< among the weights of its owner
  Weight handles;
  std::vector<std::string> names;  ///< qualified; several where the module is registered twice

  const torch::Tensor& weight() const { return *handles.weight; }
  torch::Tensor bias() const { return handles.bias == nullptr ? torch::Tensor() : *handles.bias; }
};

/// A module with parameters of its own that no scope quantizes.
struct OtherModule {
  std::shared_ptr<torch::nn::Module> module;
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
    if (const auto* replacement = dynamic_cast<const Replacement*>(target.get())) {
      if (!replacement->belongs_to_scope()) {
        add_other(name, target, "quantizes itself, whatever the scope says");
        return;
      }
      target = replacement->original_module();  // an outer scope is over it
    }
    const auto type = module_type_of(*target);
    if (type != nullptr && type->weights) {
      const auto& found = found_at(target, type, name);
      if (slot != nullptr) add_slot(*found.owner, *slot);
      for (std::size_t i = 0; i < found.count; ++i) {
        auto& layer = found_.layers[found.first + i];
        layer.names.push_back(layer.handles.name.empty() ? name : join(name, layer.handles.name));
      }
    } else if (!target->named_parameters(/*recurse=*/false).is_empty()) {
      add_other(
          name, target,
          type != nullptr ? type->reason : "an unknown type of modules; te_int8::register_module tells of its weights");
    }
    for (const auto& item : target->named_children()) {
      if (item.value() == nullptr) continue;
      const Slot child_slot{target, item.key(), item.value()};
      visit(item.value(), join(name, item.key()), &child_slot);
    }
  }

  /// A parent that is registered twice comes by twice with the same slot.
  static void add_slot(Owner& owner, const Slot& slot) {
    const auto same = [&](const Slot& s) { return s.parent == slot.parent && s.key == slot.key; };
    if (std::ranges::none_of(owner.slots, same)) owner.slots.push_back(slot);
  }

  /// The layers of an owner are next to each other.
  struct Found {
    std::shared_ptr<Owner> owner;
    std::size_t first, count;
  };
  const Found& found_at(
      const std::shared_ptr<torch::nn::Module>& module, const std::shared_ptr<const ModuleType>& type,
      const std::string& name) {
    const auto [it, added] = owners_.try_emplace(module.get());
    auto& found = it->second;
    if (!added) return found;
    auto owner = std::make_shared<Owner>(Owner{module, type, {}});
    auto weights = type->weights(*module);
    check(weights, name, *module);
    if (!type->has_weights_only || type->type != typeid(*module)) add_other_parameters(name, module, weights);
    found = {owner, found_.layers.size(), weights.size()};
    for (std::size_t i = 0; i < weights.size(); ++i) {
      found_.layers.push_back({owner, i, std::move(weights[i]), {}});
    }
    return found;
  }

  static void check(const Weights& weights, const std::string& name, const torch::nn::Module& module) {
    std::unordered_set<std::string> names;
    for (const auto& weight : weights) {
      TORCH_CHECK_VALUE(
          names.insert(weight.name).second && weight.bias_first >= 0, "te_int8::register_module: expected the weights of ",
          c10::demangle(typeid(module).name()), " to have different names and to begin at 0 or later in their biases, got \"",
          weight.name, "\" (module \"", name, "\") ", weight.bias_first < 0 ? "with a bias_first below 0" : "twice");
    }
  }

  void add_other_parameters(
      const std::string& name, const std::shared_ptr<torch::nn::Module>& module, const Weights& weights) {
    const auto is = [](const torch::Tensor* handle, const torch::Tensor& parameter) {
      return handle != nullptr && handle->is_same(parameter);
    };
    for (const auto& item : module->named_parameters(/*recurse=*/false)) {
      const bool known = std::ranges::any_of(
          weights, [&](const Weight& w) { return is(w.weight, item.value()) || is(w.bias, item.value()); });
      if (!known) {
        add(join(name, item.key()), module, "a parameter that is not among the weights of its module's type");
      }
    }
  }

  void add_other(const std::string& name, const std::shared_ptr<torch::nn::Module>& other, const std::string& reason) {
    if (others_.insert(other.get()).second) add(name, other, reason);
  }
  void add(const std::string& name, const std::shared_ptr<torch::nn::Module>& module, const std::string& reason) {
    const auto& of = *module;
    found_.others.push_back({module, name, c10::demangle(typeid(of).name()), reason});
  }

  ModelLayers found_;
  std::unordered_map<const torch::nn::Module*, Found> owners_;
  std::unordered_set<const torch::nn::Module*> others_;
};

}  // namespace te_int8::inline v0::detail
