// A scope: what one or several AutocastGuards of the same model, mode and recipe share. It knows
// the layers it covers, puts their replacements into the module tree and takes them out again, and
// tells which layer a matmul's weight belongs to.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include <c10/util/flat_hash_map.h>
#include <torch/nn/module.h>

#include <te_int8/detail/layers.h>
#include <te_int8/recipe.h>
#include <te_int8/report.h>

namespace te_int8::inline v0::detail {

/// A layer as a scope treats it.
struct ScopedLayer {
  Layer layer;
  std::string reason;                                ///< why it is in full precision, or empty
  std::shared_ptr<QuantizedLayer> quantized;         ///< null in full precision
  std::shared_ptr<QuantizedLinearImpl> replacement;  ///< in the tree; null where only routed

  const torch::Tensor& weight() const {
    return replacement ? replacement->live_weight() : layer.weight();
  }
  const torch::Tensor& bias() const {
    return replacement ? replacement->live_bias() : layer.bias();
  }
};

/// The rows of a layer's weight that an operation was given.
struct Match {
  const ScopedLayer* layer;
  WeightRows part;
};

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

  /// The layers by the storage of their weight, as of some moment.
  struct Index {
    /// The members that hold a layer's weight, and what they held. Pinned by weak pointers, so that
    /// an address cannot come back as something else.
    struct Known {
      explicit Known(const ScopedLayer& scoped);
      bool changed() const;

     private:
      struct Member {
        explicit Member(const at::Tensor& member)
            : tensor(&member), impl(member.getIntrusivePtr()) {}
        const at::Tensor* tensor;
        c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> impl;
      };
      Member original_, replacement_;  ///< the same where the tree has no replacement
      c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
      const c10::TensorImpl* live_;  ///< whichever of the two is in force
    };
    ska::flat_hash_map<const c10::StorageImpl*, std::vector<const ScopedLayer*>> by_storage;
    ska::flat_hash_map<int64_t, std::vector<Known>> by_depth;  ///< K of [N,K]
    std::unordered_set<const c10::TensorImpl*> weights;
    bool all_row_major = true;

    /// Whether `operand` may be a weight that is not in the index yet: it is laid out like one of K
    /// columns, and such a weight has changed its storage. `.to`, `load` and assignments do that.
    bool misses(const at::Tensor& operand, bool transposed) const;
  };
  std::shared_ptr<const Index> index() const;
  uint64_t index_epoch() const { return epoch_.load(std::memory_order_acquire); }
  void rebuild_index();
  bool covers(const c10::TensorImpl* weight) const;

 private:
  void configure(std::vector<Layer> layers);

  std::shared_ptr<torch::nn::Module> root_;
  Mode mode_;
  Recipe recipe_;
  std::vector<ScopedLayer> layers_;
  std::vector<OtherModule> others_;
  std::vector<const ScopedLayer*> replaced_;
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
/// Ends a membership, from whichever thread. The last one restores the model.
TE_INT8_API void leave_scope(const std::shared_ptr<Membership>& membership) noexcept;

/// The layer, if any, that computes in INT8 on the calling thread when an operation is given
/// `weight`: W^T where `transposed`, else W. Fast; called for every matmul of a thread in a scope.
struct RoutedLayer {
  std::shared_ptr<Scope> scope;  ///< kept alive for a thread that has no membership of its own
  Match match;
};
std::optional<RoutedLayer> find_layer(const torch::Tensor& weight, bool transposed);

}  // namespace te_int8::inline v0::detail
