// A scope: what one or several AutocastGuards of the same model, mode and recipe share. It knows
// the layers it covers, puts their replacements into the module tree and takes them out again, and
// tells which layer a matmul's weight belongs to.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include <c10/util/flat_hash_map.h>
#include <torch/nn/module.h>

#include <te_int8/detail/batch_norm.h>
#include <te_int8/detail/layers.h>
#include <te_int8/detail/quantized_layer.h>
#include <te_int8/recipe.h>
#include <te_int8/report.h>

namespace te_int8::inline v0::detail {

/// A layer as a scope treats it.
struct ScopedLayer {
  Layer layer;
  std::string reason;                         ///< why it is in full precision, or empty
  std::shared_ptr<QuantizedLayer> quantized;  ///< null in full precision
  std::shared_ptr<Replacement> replacement;   ///< of its owner, in the tree; null where only routed

  const torch::Tensor& weight() const {
    return replacement ? replacement->live_weight(layer.place) : layer.weight();
  }
  torch::Tensor bias() const {
    return replacement ? replacement->live_bias(layer.place) : layer.bias();
  }
};

/// The layers that have one weight for one operation, in the tree's order. A matmul does not tell which of them it
/// belongs to, so they share one fate: the first computes and counts, unless one of them is in full
/// precision.
struct TiedLayers {
  std::vector<const ScopedLayer*> layers;

  const ScopedLayer& first() const { return *layers.front(); }
  const at::Tensor& weight() const { return first().weight(); }
  Operation operation() const { return first().layer.handles.operation; }
  /// Null in full precision.
  QuantizedLayer* quantized() const {
    const bool all = std::ranges::all_of(
        layers, [](const ScopedLayer* layer) { return layer->quantized != nullptr; });
    return all ? first().quantized.get() : nullptr;
  }
};

/// The rows of a weight that an operation was given.
struct Match {
  const TiedLayers* layers;
  WeightRows part;
};

/// What `operand`, given to `operation`, is of the weight `live`, if anything: of a Linear the rows that it is a view of,
/// transposed or not; of the others all of it.
std::optional<WeightRows> part_of(
    const torch::Tensor& live, const torch::Tensor& operand, bool transposed, Operation operation);

class Scope {
 public:
  Scope(torch::nn::Module& root, Mode mode, Recipe recipe);
  ~Scope() { restore(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  bool is_for(const torch::nn::Module& root, Mode mode, const Recipe& recipe) const {
    return &root == root_.get() && mode == mode_ && recipe == recipe_;
  }
  /// A layer that both scopes cover, or null.
  const ScopedLayer* shared_layer(const Scope& other) const;
  /// Puts the replacements into the tree. Undone by restore(), also after a part of it threw.
  void replace();
  /// Puts back what was there before. Slots that somebody else has changed since are left alone.
  void restore() noexcept;

  TE_INT8_API Report report() const;
  Mode mode() const { return mode_; }

  /// The layers by the storage of their weight, as of some moment. `.to`, `load` and assignments
  /// make it out of date.
  struct Index {
    ska::flat_hash_map<const c10::StorageImpl*, std::vector<const TiedLayers*>> by_storage;
    std::vector<TiedLayers> tied;

    explicit Index(const std::vector<ScopedLayer>& layers);
    /// Whether a layer was given another weight since.
    bool assigned() const { return assigned(handles_); }
    /// Whether a layer in full precision was, perhaps a quantized layer's.
    bool full_precision_assigned() const { return assigned({handles_.data(), full_precision_}); }
    /// Whether `operand`, which was not found, may be a view of a weight that has got other data since.
    bool moved(const at::Tensor& operand) const;
    bool covers(const c10::TensorImpl* weight) const { return storage_of_.count(weight) > 0; }
    void forget_codes_missing_in(const Index& later) const;

   private:
    /// The handles of a layer, and the weight it had. Laid out for reading many in a row.
    struct Handles {
      const at::Tensor *original, *replacement;  ///< the same where the tree has no replacement
      const c10::TensorImpl* weight;
    };
    void add(const TiedLayers& layers);
    static bool assigned(std::span<const Handles> handles);

    std::vector<Handles> handles_;
    std::size_t full_precision_ = 0;  ///< so many of handles_, the first, are of layers in full precision
    ska::flat_hash_map<const c10::TensorImpl*, const c10::StorageImpl*> storage_of_;
    // Pinned, so that an address cannot come back as something else.
    std::vector<c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>> impls_;
    std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages_;
  };
  std::shared_ptr<const Index> index() const;
  uint64_t index_epoch() const { return epoch_.load(std::memory_order_acquire); }
  /// Makes the index anew, after layers were given other weights.
  void rebuild_index();
  /// The weight that the layer of `operand` was given through the module tree, where the operand is that
  /// layer's former weight: the call began before the scope could tell the other handle.
  at::Tensor successor_of(const at::Tensor& operand, bool transposed, Operation operation) const;
  /// Where operations leave the codes of what they make; null where the scope computes nothing in INT8, or by the
  /// reference.
  std::shared_ptr<ActivationCodes> activations() const {
    return mode_ != Mode::Off && backend_ != Backend::Reference ? activations_ : nullptr;
  }
  /// Forgets the codes of an activation whose storage was written to.
  void note_write_to_activation(const at::Tensor& written) { activations_->note_write(written); }
  /// Forgets the codes of activations.
  void forget_activations() { activations_->clear(); }
  /// Whether it covers a layer of one of these modules.
  bool covers_any(const std::unordered_set<const torch::nn::Module*>& modules) const;

  /// The fold of the batch norm with these statistics, or null.
  std::shared_ptr<BatchNormFold> fold_of(const at::Tensor& running_mean) const {
    const auto found = std::ranges::find_if(folds_, [&](const auto& fold) { return fold->norm().has_mean(running_mean); });
    return found == folds_.end() ? nullptr : *found;
  }
  /// Warns of convolutions whose folded batch norms have not read all of their results.
  void warn_of_folds() const;

 private:
  void configure(std::vector<Layer> layers);
  void fold_batch_norms();
  std::string reason_of(const OtherModule& other) const;
  void make_replacements();
  std::string reason_against(const std::vector<std::string>& names) const;

  std::shared_ptr<torch::nn::Module> root_;
  Mode mode_;
  Recipe recipe_;
  Backend backend_ = Backend::Auto;
  std::vector<ScopedLayer> layers_;
  std::vector<OtherModule> others_;
  std::vector<std::shared_ptr<BatchNormFold>> folds_;
  /// The owners whose slots were looked at, each with what replaces it, if anything.
  std::vector<std::pair<std::shared_ptr<const Owner>, std::shared_ptr<Replacement>>> replaced_;
  std::shared_ptr<ActivationCodes> activations_;
  mutable std::mutex index_mutex_;
  std::shared_ptr<const Index> index_;
  std::atomic<uint64_t> epoch_{0};
};

/// One thread's part in a scope, opened by a guard or an attachment.
struct Membership {
  std::shared_ptr<Scope> scope;
  std::atomic<bool> open{true};
};

/// Opens or joins the scope of `root` for the calling thread.
TE_INT8_API std::shared_ptr<Membership> enter_scope(
    torch::nn::Module& root, Mode mode, const Recipe& recipe);
/// Lets the calling thread join a scope that is open.
TE_INT8_API std::shared_ptr<Membership> join_scope(const std::shared_ptr<Scope>& scope);
/// Sees to it that the calling thread's matmuls still reach its scopes. Warns if they did not: a block
/// that restores LibTorch's thread-local state, such as c10::InferenceMode, takes the dispatch key of
/// a scope that was opened inside it away when it ends.
TE_INT8_API void keep_routing();
/// Ends a membership, from whichever thread. The last one restores the model.
TE_INT8_API void leave_scope(const std::shared_ptr<Membership>& membership) noexcept;

/// The layer, if any, that computes `operation` in INT8 on the calling thread when it is given
/// `operand`: W^T where `transposed`, else W. Fast; called for every matmul of a thread in a scope.
struct RoutedLayer {
  Match match;
  // Kept alive for a thread that has no membership of its own.
  std::shared_ptr<Scope> scope = nullptr;
  std::shared_ptr<const Scope::Index> index = nullptr;
};
std::optional<RoutedLayer> find_layer(const torch::Tensor& operand, bool transposed, Operation operation);

/// `written` was written to by an operation of the calling thread: if it shares the storage of a weight or an activation of
/// its scopes, that one's version need not tell.
void note_write(const torch::Tensor& written);

/// Those of the innermost scope of the calling thread that has any: see Scope::activations.
std::shared_ptr<ActivationCodes> activations_of_thread();

}  // namespace te_int8::inline v0::detail
