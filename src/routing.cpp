// Note [Routing]
//
// LinearImpl::forward is not virtual, so a replacement in the module tree is not reached by calls
// through a typed member (`fc1->forward(x)`, every Linear inside TransformerEncoderLayer). What all
// of them share is a matmul with the layer's weight. A scope therefore opens a dispatch key for its
// threads, and the kernels below catch the matmuls on that key: of a weight that the scope covers,
// the layer computes; of any other, LibTorch does. The key lies above autograd and autocast, so the
// kernels see the uncast weight and the quantized layer records its own backward. It is opened by
// no tensor and in no other thread, and nothing is registered before the first scope.
#include "routing.h"

#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <te_int8/detail/deferred.h>
#include <te_int8/detail/linear_layer.h>
#include <te_int8/detail/scope.h>


namespace te_int8::inline v0::detail {
namespace {

using at::Tensor;

/// The layer for x times `operand`, if it is to compute it.
std::optional<RoutedLayer> layer_for(const Tensor& x, const Tensor& operand, bool transposed) {
  auto found = find_layer(operand, transposed, Operation::Linear);
  if (found && !LinearLayer::accepts(x, found->match.layers->weight())) return std::nullopt;
  return found;
}

LinearLayer& quantized(const TiedLayers& layers) { return static_cast<LinearLayer&>(*layers.quantized()); }

Tensor call(const RoutedLayer& routed, const Tensor& x, const Tensor& bias) {
  const auto& [layers, part] = routed.match;
  return quantized(*layers).call(x, layers->weight(), part, bias);
}

/// The biases that may be added to the rows in question: several where the weight is tied.
std::vector<Tensor> own_biases(const Match& match) {
  std::vector<Tensor> biases;
  const auto rows = match.part.rows.size(0);
  for (const auto* layer : match.layers->layers) {
    const auto bias = layer->bias();
    const auto first = layer->layer.handles.bias_first;
    if (!bias.defined() || bias.dim() != 1 || first + match.layers->weight().size(0) > bias.size(0)) continue;
    biases.push_back(rows == bias.size(0) ? bias : bias.narrow(0, first + match.part.first, rows));
  }
  return biases;
}

/// Whether LibTorch would add `added` to x times `columns` columns.
bool can_be_added(const Tensor& added, const Tensor& x, int64_t columns) {
  auto sizes = x.sizes().vec();
  sizes.back() = columns;
  return at::is_expandable_to(added.sizes(), sizes) && added.device() == x.device() && at::isFloatingType(added.scalar_type()) &&
         (added.scalar_type() == x.scalar_type() || autocast_dtype(x.device()).has_value());
}

/// Whether `added` fits the epilogue: one value per column. Anything else is added afterwards.
bool is_bias(const Tensor& added, const Tensor& x, int64_t columns) {
  return added.dim() == 1 && added.size(0) == columns && added.device() == x.device() &&
         at::isFloatingType(added.scalar_type());
}

Tensor matmul(c10::DispatchKeySet keys, const Tensor& x, const Tensor& other) {
  if (const auto routed = layer_for(x, other, /*transposed=*/true)) {
    if (x.dim() == 2) return call(*routed, x, {});
    // LinearImpl::forward adds the bias of other inputs afterwards.
    const auto& [layers, part] = routed->match;
    return quantized(*layers).call_before_bias(
        x, layers->weight(), part, own_biases(routed->match));
  }
  return at::_ops::matmul::redispatch(keys & kBelowRouting, x, other);
}

Tensor mm(c10::DispatchKeySet keys, const Tensor& x, const Tensor& other) {
  if (x.dim() == 2) {
    if (const auto routed = layer_for(x, other, /*transposed=*/true)) return call(*routed, x, {});
  }
  return at::_ops::mm::redispatch(keys & kBelowRouting, x, other);
}

Tensor addmm(
    c10::DispatchKeySet keys, const Tensor& self, const Tensor& x, const Tensor& other,
    const at::Scalar& beta, const at::Scalar& alpha) {
  const auto routed = x.dim() == 2 ? layer_for(x, other, /*transposed=*/true) : std::nullopt;
  if (!routed || !can_be_added(self, x, other.size(1))) {
    return at::_ops::addmm::redispatch(keys & kBelowRouting, self, x, other, beta, alpha);
  }
  if (beta.equal(1) && alpha.equal(1) && is_bias(self, x, other.size(1)))
    return call(*routed, x, self);
  const auto product = call(*routed, x, {});
  const auto scaled = alpha.equal(1) ? product : product * alpha;
  return beta.equal(0) ? scaled : at::add(scaled, self, beta).to(product.scalar_type());
}

Tensor linear(
    c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
    const std::optional<Tensor>& bias) {
  if (const auto routed = layer_for(x, weight, /*transposed=*/false)) {
    const auto added = bias.value_or(Tensor());
    if (!added.defined()) return call(*routed, x, {});
    if (can_be_added(added, x, weight.size(0))) {
      if (is_bias(added, x, weight.size(0))) return call(*routed, x, added);
      const auto product = call(*routed, x, {});
      return (product + added).to(product.scalar_type());
    }
  }
  return at::_ops::linear::redispatch(keys & kBelowRouting, x, weight, bias);
}

/// In-place operations, which optimizers also use on `.data()` of a weight: no version tells of that.
template <typename Op, typename Schema = typename Op::schema>
struct InPlace;
template <typename Op, typename... Arguments>
struct InPlace<Op, Tensor&(Tensor&, Arguments...)> {
  static Tensor& call(c10::DispatchKeySet keys, Tensor& self, Arguments... arguments) {
    Op::redispatch(keys & kBelowRouting, self, arguments...);
    note_write(self);
    return self;
  }
};

template <typename... Ops>
void see_writes_of(torch::Library& aten) {
  const auto see = [&](auto* op) {
    using Op = std::remove_pointer_t<decltype(op)>;
    const std::string overload = Op::overload_name;
    const auto name = std::string(Op::name).substr(sizeof("aten::") - 1) + (overload.empty() ? "" : "." + overload);
    aten.impl(name.c_str(), torch::CppFunction(TORCH_FN(InPlace<Op>::call)));
  };
  (see(static_cast<Ops*>(nullptr)), ...);
}

}  // namespace

void install_routing_kernels() {
  static const bool installed = [] {
    auto& dispatcher = c10::Dispatcher::singleton();
    bool taken = dispatcher.hasBackendFallbackForDispatchKey(kRoutingKey);
    const std::initializer_list<std::pair<const char*, const char*>> operations = {
        {"matmul", ""}, {"mm", ""}, {"addmm", ""}, {"linear", ""}, {"conv1d", ""}, {"conv2d", ""}, {"conv3d", ""},
        {"conv1d", "padding"}, {"conv2d", "padding"}, {"conv3d", "padding"}, {"convolution", ""}, {"embedding", ""},
        {"batch_norm", ""}, {"gelu", ""}, {"relu", ""}, {"silu", ""}, {"layer_norm", ""},
        {"add_", "Tensor"}, {"sub_", "Tensor"}, {"mul_", "Tensor"}, {"mul_", "Scalar"}, {"lerp_", "Scalar"},
        {"lerp_", "Tensor"}, {"addcdiv_", ""}, {"addcmul_", ""}, {"copy_", ""}};
    for (const auto& [name, overload] : operations) {
      const auto operation = dispatcher.findSchemaOrThrow((std::string("aten::") + name).c_str(), overload);
      taken |= operation.hasKernelForDispatchKey(kRoutingKey);
    }
    TORCH_CHECK(
        !taken, "te_int8::AutocastGuard: expected dispatch key ", c10::toString(kRoutingKey),
        " to be free, but another library has registered kernels on it; one process can use only "
        "one "
        "of the two");
    // LibTorch registers no fallback on this key; without one every other operation would fail.
    static torch::Library fallback(torch::Library::IMPL, "_", kRoutingKey, __FILE__, __LINE__);
    fallback.fallback(torch::CppFunction::makeFallthrough());
    static torch::Library aten(torch::Library::IMPL, "aten", kRoutingKey, __FILE__, __LINE__);
    aten.impl("matmul", TORCH_FN(matmul));
    aten.impl("mm", TORCH_FN(mm));
    aten.impl("addmm", TORCH_FN(addmm));
    aten.impl("linear", TORCH_FN(linear));
    install_convolutions(aten);
    install_embeddings(aten);
    install_norms(aten);
    install_producers(aten);
    see_writes_of<
        at::_ops::add__Tensor, at::_ops::sub__Tensor, at::_ops::mul__Tensor, at::_ops::mul__Scalar, at::_ops::lerp__Scalar,
        at::_ops::lerp__Tensor, at::_ops::addcdiv_, at::_ops::addcmul_, at::_ops::copy_>(aten);
    return true;
  }();
  (void)installed;
}

}  // namespace te_int8::inline v0::detail
