// See Note [Deferred bias] in te_int8/detail/deferred.h.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/StreamGuard.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/detail/deferred.h>
#include <te_int8/detail/stream_stamp.h>
#include <te_int8/linear_function.h>

namespace te_int8::inline v0::detail {
namespace {

class DeferredTensorImpl final : public c10::TensorImpl {
 public:
  DeferredTensorImpl(
      at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device,
      std::vector<at::Tensor> biases, DeferredCompute compute)
      : TensorImpl(
            c10::DispatchKeySet(
                {c10::computeDispatchKey(dtype, at::kStrided, device), kDeferredKey}),
            c10::scalarTypeToTypeMeta(dtype), device),
        biases_(std::move(biases)),
        compute_(std::move(compute)) {
    set_sizes_contiguous(sizes);
    if (!device.is_cpu()) stream_ = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  }

  /// Gives the tensor its values, if it has none yet; with `bias` in them where that is one of the
  /// layer's, and not at all where it is another. Returns whether it did. Any thread may come first, and
  /// the others wait; but the tensor must not be in use by two threads before, as it changes its keys.
  bool settle(const at::Tensor& bias = {}) {
    if (settled_.load(std::memory_order_acquire)) return false;
    const std::lock_guard lock(mutex_);
    if (settled_.load(std::memory_order_relaxed)) return false;
    if (bias.defined() && !is_bias(bias)) return false;
    const c10::InferenceMode inference_mode(is_inference());
    const at::NoGradGuard no_grad;
    compute_values(bias);
    compute_ = nullptr;
    biases_.clear();
    settled_.store(true, std::memory_order_release);
    return true;
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

  bool is_bias(const at::Tensor& added) const {
    return added.has_storage() && std::ranges::any_of(biases_, [&](const at::Tensor& bias) {
             return added.is_alias_of(bias) && added.storage_offset() == bias.storage_offset() &&
                    added.sizes() == bias.sizes() && added.strides() == bias.strides() &&
                    added.scalar_type() == bias.scalar_type();
           });
  }

  /// On the stream where the product was asked for: what its caller enqueues there next may read it.
  void compute_values(const at::Tensor& bias) {
    std::optional<StreamPoint> computed;
    {
      const bool elsewhere = stream_ && c10::impl::VirtualGuardImpl(device().type()).getStream(device()) != *stream_;
      const c10::OptionalStreamGuard there(elsewhere ? stream_ : std::nullopt);
      TensorImpl::shallow_copy_from(compute_(bias).getIntrusivePtr());
      if (elsewhere) computed.emplace(device());
    }
    if (computed) computed->wait({});
  }

  std::mutex mutex_;
  std::atomic<bool> settled_{false};
  std::vector<at::Tensor> biases_;
  DeferredCompute compute_;
  std::optional<c10::Stream> stream_;
};

/// What an in-place addition of a bias adds to the history of a product that is not LinearFunction's: x and W need no gradient.
struct AddBias final : torch::autograd::Node {
  explicit AddBias(at::ScalarType bias_dtype) : bias_dtype_(bias_dtype) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    const auto& dy = gradients[0];
    torch::autograd::variable_list result(2);
    if (!dy.defined()) return result;
    if (task_should_compute_output(0)) result[0] = dy;
    if (task_should_compute_output(1)) {
      const bool second_order = at::GradMode::is_enabled();
      const at::NoGradGuard no_grad;
      result[1] = bias_gradient(dy, bias_dtype_);
      if (second_order) forbid_second_order(result[1], dy, "linear");
    }
    return result;
  }
  std::string name() const override { return "te_int8::AddBias"; }

 private:
  at::ScalarType bias_dtype_;
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
  forbid_forward_mode(other);
  auto* deferred = as_deferred(self);
  const bool refused = self.requires_grad() && self.is_leaf() && at::GradMode::is_enabled();
  if (deferred == nullptr || !alpha.equal(1) || refused || !deferred->settle(other)) {
    settle(self);
    return at::_ops::add__Tensor::call(self, other, alpha);
  }
  if (!self.is_inference()) deferred->bump_version();
  if (torch::autograd::compute_requires_grad(other) && !LinearFunction::add_bias_input(self, other)) {
    auto node = std::make_shared<AddBias>(other.scalar_type());
    node->set_next_edges(torch::autograd::collect_next_edges(self, other));
    node->add_input_metadata(self);
    torch::autograd::impl::rebase_history(self, {std::move(node), 0});
  }
  return self;
}

}  // namespace

at::Tensor make_deferred(
    at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device, std::vector<at::Tensor> biases,
    DeferredCompute compute) {
  return at::detail::make_tensor<DeferredTensorImpl>(
      sizes, dtype, device, std::move(biases), std::move(compute));
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
