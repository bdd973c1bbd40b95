// AutocastGuard: the scope in which a model computes in INT8.
#pragma once

#include <memory>
#include <utility>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <te_int8/config.h>
#include <te_int8/detail/scope.h>
#include <te_int8/recipe.h>
#include <te_int8/report.h>

namespace te_int8::inline v0 {

/// Lets the thread that made it run the guarded model in INT8, for as long as it lives. Made by
/// AutocastGuard::attach(). Neither copied nor moved: it belongs to its thread and its block.
class Attachment {
 public:
  ~Attachment() { detail::leave_scope(membership_); }
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;

 private:
  friend class AutocastGuard;
  explicit Attachment(std::shared_ptr<detail::Membership> membership)
      : membership_(std::move(membership)) {}

  std::shared_ptr<detail::Membership> membership_;
};

/// Note [Guards are neither copied nor moved]
///
/// A guard is a block of the program and a thread's part in it. A copy would end the scope twice,
/// and a moved one could outlive the model it guards; std::unique_ptr does where a handle is
/// needed.

/// Quantizes the linear layers of a model for as long as it lives: in the module tree each Linear
/// becomes a QuantizedLinear with the same parameters, and calls through typed members, as in
/// TransformerEncoder and MultiheadAttention, are caught where they multiply by the weight. The end
/// of the scope, normal or by an exception, puts everything back.
///
/// ```
/// torch::Tensor loss;
/// {
///   te_int8::AutocastGuard guard(model, te_int8::Mode::QAT);
///   loss = loss_function(model->forward(x), target);
/// }
/// loss.backward();       // gradients reach the full-precision weights
/// optimizer.step();
/// ```
///
/// Scopes nest, and the inner one wins for its subtree. Guards of several threads with the same
/// model, mode and recipe share one scope that ends with the last of them. Other threads compute in
/// full precision unless they attach(); autograd's own threads need nothing.
///
/// Codes of weights, and of activations that feed several layers, are made once and used again. Writes
/// that LibTorch does not tell of need refresh(): to a weight or to an input through a raw pointer, and
/// to a weight through `.data()` without a gradient that a backward has produced.
///
/// A guard that is made inside a c10::InferenceMode block must end inside it: with the block LibTorch
/// puts the thread's dispatch keys back, the scope's among them. The guard warns where that happened.
class AutocastGuard {
 public:
  /// Errors: a glob that matches no layer; a back end that is unknown or not usable; a layer that
  /// another thread has guarded in another way.
  AutocastGuard(torch::nn::Module& model, Mode mode, Recipe recipe = {})
      : membership_(detail::enter_scope(model, mode, recipe)) {}

  template <typename Contained>
  AutocastGuard(const torch::nn::ModuleHolder<Contained>& model, Mode mode, Recipe recipe = {})
      : AutocastGuard(static_cast<torch::nn::Module&>(*model.ptr()), mode, std::move(recipe)) {}

  template <typename Module>
  AutocastGuard(const std::shared_ptr<Module>& model, Mode mode, Recipe recipe = {})
      : AutocastGuard(checked(model), mode, std::move(recipe)) {}

  ~AutocastGuard() { detail::leave_scope(membership_); }
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

  /// What the scope covers and how often each layer was called so far, of all its threads.
  Report report() const {
    detail::keep_routing();
    return membership_->scope->report();
  }

  /// Lets the calling thread run the guarded model in INT8 too. Costs nothing to the others.
  [[nodiscard]] Attachment attach() const {
    return Attachment(detail::join_scope(membership_->scope));
  }

 private:
  static torch::nn::Module& checked(const std::shared_ptr<torch::nn::Module>& model) {
    TORCH_CHECK(model != nullptr, "te_int8::AutocastGuard: expected a model, got a null pointer");
    return *model;
  }

  std::shared_ptr<detail::Membership> membership_;
};

/// Forgets the codes made of a model's weights, and of activations. Needed only after writes that
/// LibTorch does not tell of: through raw pointers; through `.data()`, also by torch::optim::SGD, on a
/// weight into which no backward has accumulated a gradient since its codes were made (one that is frozen,
/// or whose gradient was assigned, or asked for by torch::autograd::grad); through another tensor that was
/// given the weight's storage after its codes were made.
TE_INT8_API void refresh(torch::nn::Module& model);

}  // namespace te_int8::inline v0
