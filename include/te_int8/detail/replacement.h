// What stands in a module tree for a module that a scope quantizes.
#pragma once

#include <memory>
#include <ostream>
#include <vector>

#include <torch/nn/module.h>
#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// A layer has two handles meanwhile, the original's member and this one's. A weight or bias that is assigned to either
/// is the layer's.
class TE_INT8_API Replacement {
 public:
  virtual ~Replacement() = default;

  virtual std::shared_ptr<torch::nn::Module> original_module() const = 0;
  /// False where somebody made it to use it by itself.
  virtual bool belongs_to_scope() const { return true; }

  /// The weight and bias in force: the original's, unless somebody assigned others to this module.
  const torch::Tensor& live_weight(std::size_t i = 0) const { return layers_.at(i).weight.live(); }
  const torch::Tensor& live_bias(std::size_t i = 0) const { return layers_.at(i).bias.live(); }
  /// This module's own handle.
  const torch::Tensor& own_weight(std::size_t i) const { return *layers_.at(i).weight.here; }
  /// Makes an assignment to one of the two handles of a layer one to both.
  void synchronize() {
    for (auto& layer : layers_) {
      layer.weight.synchronize();
      layer.bias.synchronize();
    }
  }

 protected:
  Replacement() = default;
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;

  /// A layer without bias has null there.
  void add_handles(
      torch::Tensor* weight, torch::Tensor* bias, torch::Tensor* original_weight, torch::Tensor* original_bias) {
    layers_.push_back({Handles(weight, original_weight), Handles(bias, original_bias)});
  }
  /// What `original` prints, under its type's name with "te_int8::Quantized" before it.
  static void print_as_quantized(std::ostream& stream, const torch::nn::Module& original);

 private:
  struct Handles {
    Handles(torch::Tensor* of_replacement, torch::Tensor* of_original)
        : here(of_replacement), there(of_original) {
      if (here != nullptr) entry = *here;
    }
    const torch::Tensor& live() const {
      if (here == nullptr) return entry;
      return here->is_same(entry) ? *there : *here;
    }
    // The order of the writes keeps live() right for other threads.
    void synchronize() {
      if (here == nullptr || (here->is_same(entry) && there->is_same(entry))) return;
      if (there->is_same(entry)) {
        *there = *here;
      } else {
        *here = *there;
      }
      entry = *here;
    }

    torch::Tensor *here, *there;
    torch::Tensor entry;  ///< what both were
  };
  struct Layer {
    Handles weight, bias;
  };
  std::vector<Layer> layers_;
};

}  // namespace te_int8::inline v0::detail
