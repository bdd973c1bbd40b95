// See Note [Deferred bias] in te_int8/detail/deferred.h.
#include <atomic>
#include <mutex>
#include <utility>

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/detail/deferred.h>

namespace te_int8::inline v0::detail {
namespace {

class DeferredTensorImpl final : public c10::TensorImpl {
 public:
  DeferredTensorImpl(
      at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device, at::Tensor bias,
      DeferredCompute compute)
      : TensorImpl(
            c10::DispatchKeySet(
                {c10::computeDispatchKey(dtype, at::kStrided, device), kDeferredKey}),
            c10::scalarTypeToTypeMeta(dtype), device),
        bias_(std::move(bias)),
        compute_(std::move(compute)) {
    set_sizes_contiguous(sizes);
  }

  bool takes_bias(const at::Tensor& other, const at::Scalar& alpha) const {
    // A bias that wants a gradient needs a product that was recorded: it carries the edge.
    const bool needs_edge = at::GradMode::is_enabled() && other.requires_grad();
    return !settled_ && alpha.equal(1) && other.has_storage() && other.is_alias_of(bias_) &&
           (!needs_edge || requires_grad()) && other.storage_offset() == bias_.storage_offset() &&
           other.sizes() == bias_.sizes() && other.strides() == bias_.strides() &&
           other.requires_grad() == bias_.requires_grad();
  }

  /// Gives the tensor its values. Any thread may come first; the others wait.
  void settle(const at::Tensor& bias = {}) {
    if (settled_.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex_);
    if (settled_.load(std::memory_order_relaxed)) return;
    const bool grad_mode = at::GradMode::is_enabled();
    const c10::InferenceMode inference_mode(is_inference());
    const at::NoGradGuard no_grad;
    const auto values = compute_(bias, grad_mode);
    TensorImpl::shallow_copy_from(values.getIntrusivePtr());
    compute_ = nullptr;
    bias_.reset();
    settled_.store(true, std::memory_order_release);
  }

  bool has_storage() const override {
    settle_const();
    return TensorImpl::has_storage();
  }
  const c10::Storage& storage() const override {
    settle_const();
    return TensorImpl::storage();
  }
  c10::intrusive_ptr<TensorImpl> shallow_copy_and_detach(
      const c10::VariableVersion& version, bool allow_metadata_change) const override {
    settle_const();
    return TensorImpl::shallow_copy_and_detach(version, allow_metadata_change);
  }
  c10::intrusive_ptr<TensorImpl> shallow_copy_and_detach(
      c10::VariableVersion&& version, bool allow_metadata_change) const override {
    settle_const();
    return TensorImpl::shallow_copy_and_detach(std::move(version), allow_metadata_change);
  }
  void shallow_copy_from(const c10::intrusive_ptr<TensorImpl>& impl) override {
    settle();  // another thread may be about to write what set_data replaces
    TensorImpl::shallow_copy_from(impl);
  }

 private:
  const char* tensorimpl_type_name() const override { return "te_int8::DeferredTensorImpl"; }
  void settle_const() const { const_cast<DeferredTensorImpl*>(this)->settle(); }

  std::mutex mutex_;
  std::atomic<bool> settled_{false};
  at::Tensor bias_;
  DeferredCompute compute_;
};

DeferredTensorImpl* as_deferred(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.key_set().has(kDeferredKey)) return nullptr;
  return dynamic_cast<DeferredTensorImpl*>(tensor.unsafeGetTensorImpl());
}

void settle(const at::Tensor& tensor) {
  if (auto* deferred = as_deferred(tensor)) deferred->settle();
}

void settle(const c10::IValue& value) {
  if (value.isTensor()) {
    settle(value.toTensor());
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) settle(element);
  }
}

/// Every operation that has no kernel below: settle what is owed, then start over.
void settle_arguments(
    const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    settle(argument);
  }
  op.callBoxed(stack);
}

at::Tensor& add_bias(at::Tensor& self, const at::Tensor& other, const at::Scalar& alpha) {
  settle(other);
  auto* deferred = as_deferred(self);
  if (deferred != nullptr && deferred->takes_bias(other, alpha)) {
    deferred->settle(other);
    return self;
  }
  settle(self);
  return at::_ops::add__Tensor::call(self, other, alpha);
}

}  // namespace

at::Tensor make_deferred(
    at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device, at::Tensor bias,
    DeferredCompute compute) {
  return at::detail::make_tensor<DeferredTensorImpl>(
      sizes, dtype, device, std::move(bias), std::move(compute));
}

void install_deferred_kernels() {
  static const bool installed = [] {
    TORCH_CHECK(
        !c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(kDeferredKey),
        "te_int8::AutocastGuard: expected dispatch key ", c10::toString(kDeferredKey),
        " to be free, but another library has registered a fallback on it; one process can use "
        "only "
        "one of the two");
    static torch::Library fallback(torch::Library::IMPL, "_", kDeferredKey, __FILE__, __LINE__);
    fallback.fallback(torch::CppFunction::makeFromBoxedFunction<&settle_arguments>());
    static torch::Library aten(torch::Library::IMPL, "aten", kDeferredKey, __FILE__, __LINE__);
    aten.impl("add_.Tensor", TORCH_FN(add_bias));
    return true;
  }();
  (void)installed;
}

}  // namespace te_int8::inline v0::detail
