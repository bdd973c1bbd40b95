// Codes of gradients.
//
// The node that makes the gradient dy of a quantized layer can leave the codes that the layer's backward is about to make of it,
// from the kernel that makes dy (src/producers.cpp). They wait in the layer's node, and are found by the state of dy: where autograd
// adds another gradient to it, or a hook another value, nobody finds them.
//
// Such a kernel writes dy over the gradient that it was given. It may where that gradient was made for its node alone, and
// nobody else has hold of it now. LibTorch can tell the latter only, and a reader on another stream may have let go before its
// kernel has run; so nodes of ours note for whom they make a gradient.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include <torch/csrc/autograd/function.h>
#include <torch/types.h>

#include <te_int8/backends.h>
#include <te_int8/detail/operand.h>
#include <te_int8/detail/tensor_state.h>

namespace te_int8::inline v0::detail {

/// What the backward of a layer makes of dy.
struct WantedCodes {
  bool by_row = false, by_column = false, column_sums = false;
  Backend backend = Backend::Auto;
};

/// What comes with a gradient [*,N] of R rows.
struct CodesOfGradient {
  std::shared_ptr<Operand> rows;  ///< codes by row, [R,N]
  at::Tensor column_sums;         ///< [N], or undefined
  at::Tensor column_amax;         ///< [N] int32, the bits of the largest magnitudes; or undefined
};

/// What Operand::make_both gives for dy [R,N], of which `made` is known: with codes by column where there are the columns' maxima.
TE_INT8_API Operand::Both complete_codes(const at::Tensor& dy, CodesOfGradient made, bool column_sums);

/// Codes of a gradient, on the stream that made them.
class LeftCodes {
 public:
  LeftCodes(const at::Tensor& dy, CodesOfGradient made) : state_(dy), stream_(dy.device()), made_(std::move(made)) {}

  /// Those that are wanted, if these are of dy.
  std::optional<Operand::Both> of(const at::Tensor& dy, const WantedCodes& wanted) && {
    const bool enough = made_.rows && (made_.column_amax.defined() || !wanted.by_column) &&
                        (made_.column_amax.defined() || made_.column_sums.defined() || !wanted.column_sums);
    if (!enough || !stream_.is_current() || !state_.is_state_of(dy)) return std::nullopt;
    if (!wanted.by_row) made_.rows.reset();
    if (!wanted.by_column) return Operand::Both{std::move(made_.rows), nullptr, std::move(made_.column_sums)};
    return complete_codes(as_rows(dy), std::move(made_), wanted.column_sums);
  }

 private:
  LaidOutState state_;
  StreamStamp stream_;
  CodesOfGradient made_;
};

/// The gradient that a node of ours has returned last in this thread. Backwards that take turns in a device's thread may put out
/// each other's notes: their kernels are then those of gradients that nobody has noted.
class LastGradient {
 public:
  TE_INT8_API static LastGradient& of_thread();

  /// `maker` has just made it, for the node behind its `edge` alone. Only on a GPU does anybody ask.
  void note(const at::Tensor& gradient, torch::autograd::Node& maker, std::size_t edge) {
    reader_ = nullptr;
    if (!gradient.is_cuda() || !gradient.has_storage() || gradient.is_inference() || !maker.post_hooks().empty()) return;
    state_.emplace(gradient);
    reader_ = maker.next_edge(edge).function.get();
  }
  /// Whether it is the one, and nobody but the caller has hold of it.
  bool is_of(const at::Tensor& gradient, const torch::autograd::Node& reader) const {
    return reader_ == &reader && state_->is_state_of(gradient) && gradient.use_count() == 1 &&
           gradient.storage().use_count() == 1;
  }

 private:
  std::optional<LaidOutState> state_;
  const torch::autograd::Node* reader_ = nullptr;  ///< compared only
};

/// Whether somebody may see or change the gradient that comes to a node, before the node does.
inline bool has_hooks_before(torch::autograd::Node& node) {
  return !node.tensor_pre_hooks().empty() || !node.pre_hooks().empty() || !node.retains_grad_hooks().empty();
}

/// Whether the backward that runs now comes to a node, to more than take what goes into it.
TE_INT8_API bool will_run(const torch::autograd::Node& node);

}  // namespace te_int8::inline v0::detail
