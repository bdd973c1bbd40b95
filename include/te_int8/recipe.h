// Recipe: which of a layer's matmuls run in INT8, how finely operands are scaled, and which layers
// take part. A value: build one fluently and hand it to AutocastGuard.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <torch/arg.h>
#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0 {

/// What a scope does with the layers it covers.
enum class Mode {
  QAT,        ///< quantized forward, straight-through gradients to the full-precision weights
  Inference,  ///< the same forward bits (but see Recipe::allow_full_precision), no graph; an error where grad mode is on and needed
  Off,        ///< full precision; for a subtree inside another scope
};

/// Arithmetic of one of a layer's three matmuls.
enum class Precision {
  Full,  ///< the tensors' own dtype
  Int8,  ///< int8 x int8 products, exact integer sums, fp32 scales
};

/// How many values share one scale.
class Granularity {
 public:
  /// One scale per row: per token of an activation, per output channel of a weight.
  static constexpr Granularity per_row() { return Granularity(false); }
  /// One scale for the whole tensor.
  static constexpr Granularity per_tensor() { return Granularity(true); }

  constexpr bool is_per_tensor() const { return per_tensor_; }
  /// The spelling that the dispatcher operations take: "row" or "tensor".
  constexpr const char* name() const { return per_tensor_ ? "tensor" : "row"; }

  friend constexpr bool operator==(Granularity, Granularity) = default;

 private:
  constexpr explicit Granularity(bool per_tensor) : per_tensor_(per_tensor) {}
  bool per_tensor_;
};

/// The configuration of a scope.
///
/// Example:
/// ```
/// auto recipe = te_int8::Recipe::switchback().exclude({"head", "encoder.layers.0.**"});
/// te_int8::AutocastGuard guard(model, te_int8::Mode::QAT, recipe);
/// ```
class Recipe {
 public:
  /// INT8 forward, exact straight-through backward in the tensors' own dtype. The default.
  static Recipe qat() { return {}; }
  /// INT8 for the output and for the gradient of the input, full precision for the gradient of the
  /// weight (the split of SwitchBack, Wortsman et al. 2023, arXiv:2304.13013).
  static Recipe switchback() { return Recipe().grad_input(Precision::Int8); }
  /// All three matmuls in INT8.
  static Recipe int8_training() { return switchback().grad_weight(Precision::Int8); }

  /// Scales of a layer's input.
  TORCH_ARG(Granularity, activations) = Granularity::per_row();
  /// Scales of a layer's weight.
  TORCH_ARG(Granularity, weights) = Granularity::per_row();
  /// Precision of y = x W^T + b.
  TORCH_ARG(Precision, output) = Precision::Int8;
  /// Precision of dx = dy W.
  TORCH_ARG(Precision, grad_input) = Precision::Full;
  /// Precision of dW = dy^T x.
  TORCH_ARG(Precision, grad_weight) = Precision::Full;
  /// As what the inputs of GELU and SiLU are held for their backward, of a scope (rules have no say). Int8: as codes by row,
  /// half of the memory of bf16, and gradients change in the size of the codes' rounding. For GPUs.
  TORCH_ARG(Precision, preactivations) = Precision::Full;
  /// Tables of embeddings. Int8: rows of codes, a scale each (`weights` says whether), which training rounds too, with
  /// straight-through gradients. The table shares its codes with a Linear that is tied to it.
  TORCH_ARG(Precision, embeddings) = Precision::Full;
  /// Of a scope of Mode::Inference: a Conv1d to Conv3d computes in its epilogue the BatchNorm that comes next in a Sequential, with
  /// the running statistics, and the norm hands that on. So who reads the convolution's own result, by a hook or by calling the
  /// children one by one, finds it normalized. What INT8 rounds stays the same; results differ by the roundings in fp32 of scale
  /// and shift, and by one rounding to the output's dtype less. Other pairs are named by fold_batch_norm. A norm in training mode
  /// is left alone.
  TORCH_ARG(bool, fold_batch_norms) = false;
  /// Name of a back end (see backends()); "auto" takes TE_INT8_BACKEND from the environment if it
  /// is set, else the first usable one.
  TORCH_ARG(std::string, backend) = "auto";
  /// Of Mode::Inference on the CPU, by the back end "auto": calls of linear layers and convolutions are computed in full precision
  /// where that takes 5 % less time or still less, as for many depthwise convolutions. The first call of a kind (sizes, rows or
  /// samples in buckets, dtypes, memory format, number of threads) is timed both ways, some 100 ms or three calls of each if those
  /// take longer; what was found holds for the process. So results change as INT8 differs from full precision: from process to
  /// process, and within one from kind to kind (a batch of another size, an input that is not 2-D) and while another thread is
  /// timing. The report tells how many calls were. Training always rounds, and so do convolutions that compute a batch norm.
  TORCH_ARG(bool, allow_full_precision) = false;
  /// Globs over qualified layer names; empty means all. `*` does not cross a dot, `**` does, and
  /// the root itself is "". A glob that matches no layer is an error.
  TORCH_ARG(std::vector<std::string>, include);
  /// Globs of layers to leave in full precision; wins over include.
  TORCH_ARG(std::vector<std::string>, exclude);

 public:
  /// Has a convolution compute a BatchNorm (qualified names: "layer1.0.conv1", "layer1.0.bn1") as fold_batch_norms does for those
  /// in a Sequential. The model's code must give its results to this norm, and to nothing else, in the scope.
  Recipe& fold_batch_norm(std::string convolution, std::string batch_norm) {
    batch_norm_pairs_.emplace_back(std::move(convolution), std::move(batch_norm));
    return *this;
  }
  const std::vector<std::pair<std::string, std::string>>& batch_norm_pairs() const { return batch_norm_pairs_; }

  /// Gives the layers that match `glob` another recipe: all of it but include and exclude; not folding. The last
  /// match wins. `recipe` must have no rules of its own.
  Recipe& rule(std::string glob, Recipe recipe) {
    TORCH_CHECK(
        recipe.rule_recipes_.empty(),
        "te_int8::Recipe::rule: expected a recipe without rules for \"", glob, "\", got one with ",
        recipe.rule_recipes_.size());
    TORCH_CHECK(
        !recipe.fold_batch_norms() && recipe.batch_norm_pairs_.empty(),
        "te_int8::Recipe::rule: expected folding of batch norms, which is a scope's, not in the recipe for \"", glob, "\", got it there");
    rule_globs_.push_back(std::move(glob));
    rule_recipes_.push_back(std::move(recipe));
    return *this;
  }
  const std::vector<std::string>& rule_globs() const { return rule_globs_; }
  const std::vector<Recipe>& rule_recipes() const { return rule_recipes_; }

  friend bool operator==(const Recipe&, const Recipe&) = default;

 private:
  std::vector<std::pair<std::string, std::string>> batch_norm_pairs_;
  std::vector<std::string> rule_globs_;
  std::vector<Recipe> rule_recipes_;
};

}  // namespace te_int8::inline v0
