// Which weight a matmul's operand is: a scope's index of its layers by storage, and the comparison of an
// operand with one weight.
#include <te_int8/detail/scope.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_map>

#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

namespace te_int8::inline v0::detail {

Scope::Index::Index(const std::vector<ScopedLayer>& layers) {
  std::array<std::unordered_map<const c10::TensorImpl*, std::size_t>, kOperations> groups;
  for (const auto& scoped : layers) {
    const auto& weight = scoped.weight();
    auto& group_of = groups.at(static_cast<std::size_t>(scoped.layer.handles.operation));
    const auto [group, added] = group_of.try_emplace(weight.unsafeGetTensorImpl(), tied.size());
    if (added || !weight.defined()) tied.emplace_back();
    tied[weight.defined() ? group->second : tied.size() - 1].layers.push_back(&scoped);
    const auto& original = scoped.layer.weight();
    handles_.push_back(
        {&original, scoped.replacement ? &scoped.replacement->own_weight(scoped.layer.place) : &original,
         weight.unsafeGetTensorImpl()});
    if (!scoped.quantized) std::swap(handles_.back(), handles_[full_precision_++]);
  }
  for (const auto& layers_of_weight : tied) add(layers_of_weight);
}

void Scope::Index::add(const TiedLayers& layers) {
  const auto& weight = layers.weight();
  impls_.emplace_back(weight.getIntrusivePtr());
  if (!weight.defined() || !has_dimensions_for(layers.operation(), weight.dim()) || !weight.has_storage()) return;
  const auto* impl = weight.unsafeGetTensorImpl();
  const auto* storage = weight.storage().unsafeGetStorageImpl();
  storages_.push_back(weight.storage().getWeakStorageImpl());
  by_storage[storage].push_back(&layers);
  storage_of_[impl] = storage;
  if (weight.is_view()) {  // the base stands for its views, this weight among them
    const auto& base = weight._base();
    impls_.emplace_back(base.getIntrusivePtr());
    storage_of_[base.unsafeGetTensorImpl()] = base.storage().unsafeGetStorageImpl();
  }
}

namespace {

const c10::StorageImpl* storage_in(const c10::TensorImpl* impl) {
  return impl->unsafe_storage().unsafeGetStorageImpl();
}

}  // namespace

/// A scan of all layers at every matmul that is not theirs: no branches, so that loads overlap.
bool Scope::Index::assigned(std::span<const Handles> handles) {
  std::uintptr_t difference = 0;
  for (const auto& [original, replacement, weight] : handles) {
    const auto known = reinterpret_cast<std::uintptr_t>(weight);
    difference |= reinterpret_cast<std::uintptr_t>(original->unsafeGetTensorImpl()) ^ known;
    difference |= reinterpret_cast<std::uintptr_t>(replacement->unsafeGetTensorImpl()) ^ known;
  }
  return difference != 0;
}

bool Scope::Index::moved(const at::Tensor& operand) const {
  if (operand.is_inference()) {  // autograd does not tell what it is a view of
    return std::ranges::any_of(
        storage_of_, [](const auto& known) { return storage_in(known.first) != known.second; });
  }
  const auto* base = base_of(operand).unsafeGetTensorImpl();
  const auto known = storage_of_.find(base);
  return known != storage_of_.end() && known->second != storage_in(base);
}

void Scope::Index::forget_codes_missing_in(const Index& later) const {
  for (const auto& [impl, storage] : storage_of_) {
    if (later.storage_of_.count(impl) == 0) WeightCodeCache::instance().leave(impl);
  }
}

namespace {

/// Whether a gradient of the view `operand` goes straight to the leaf `live`, past no hook: then the
/// leaf can stand for the view. Not so for detached views, nor for a weight that was computed.
bool records_into(const torch::Tensor& operand, const torch::Tensor& live) {
  if (operand.is_same(live) || (!operand.requires_grad() && !live.requires_grad())) return true;
  const auto node = operand.grad_fn();
  if (!node || node->num_outputs() != 1 || !torch::autograd::impl::hooks(operand).empty() ||
      !node->pre_hooks().empty() || !node->tensor_pre_hooks().empty() ||
      !node->post_hooks().empty()) {
    return false;
  }
  const auto* leaf =
      dynamic_cast<torch::autograd::AccumulateGrad*>(node->next_edge(0).function.get());
  return leaf != nullptr && leaf->variable.is_same(live);
}

/// Whether both count their versions together.
bool share_versions(const torch::Tensor& operand, const torch::Tensor& live) {
  return operand.is_same(live) || base_of(operand).unsafeGetTensorImpl() == base_of(live).unsafeGetTensorImpl();
}

/// How many tensors of a call hold the storage of a weight that it was given whole; see WeightCodes::get.
std::size_t holders_of_whole(const torch::Tensor& operand, const torch::Tensor& live) {
  if (operand.is_same(live)) return 1;
  return share_versions(operand, live) ? 2 : 0;
}

bool of_one_storage(const torch::Tensor& operand, const torch::Tensor& live) {
  return live.defined() && live.scalar_type() == operand.scalar_type() && live.is_neg() == operand.is_neg() &&
         live.storage().unsafeGetStorageImpl() == operand.storage().unsafeGetStorageImpl();
}

std::optional<WeightRows> whole_of(const torch::Tensor& live, const torch::Tensor& operand) {
  if (!of_one_storage(operand, live) || operand.storage_offset() != live.storage_offset() ||
      operand.sizes() != live.sizes() || operand.strides() != live.strides()) {
    return std::nullopt;
  }
  const bool same_history = !at::GradMode::is_enabled() || records_into(operand, live);
  return WeightRows{same_history ? live : operand, 0, holders_of_whole(operand, live)};
}

std::optional<WeightRows> rows_of(
    const torch::Tensor& live, const torch::Tensor& operand, bool transposed) {
  if (!of_one_storage(operand, live) || live.dim() != 2) return std::nullopt;
  const int64_t row = transposed ? 1 : 0;
  const int64_t count = operand.size(row);
  const int64_t depth = operand.size(1 - row);
  const int64_t stride = live.stride(0);
  const int64_t offset = operand.storage_offset() - live.storage_offset();
  const int64_t first = stride > 0 ? offset / stride : 0;
  if (depth != live.size(1) || (count > 1 && operand.stride(row) != stride) ||
      (depth > 1 && operand.stride(1 - row) != live.stride(1)) || offset != first * stride ||
      first < 0 || first + count > live.size(0)) {
    return std::nullopt;
  }
  // A detached view asks for no gradient of the parameter.
  const bool same_history = !at::GradMode::is_enabled() || records_into(operand, live);
  const bool one_counter = share_versions(operand, live);
  if (count == live.size(0) && same_history) return WeightRows{live, 0, holders_of_whole(operand, live)};
  if (!transposed) return WeightRows{operand, first, one_counter ? 2U : 0U};
  // The weight, the operand, its transpose made here, and the rows that the operand is made from.
  return WeightRows{operand.t(), first, one_counter ? 4U : 0U};
}

}  // namespace

std::optional<WeightRows> part_of(
    const torch::Tensor& live, const torch::Tensor& operand, bool transposed, Operation operation) {
  return operation == Operation::Linear ? rows_of(live, operand, transposed) : whole_of(live, operand);
}

}  // namespace te_int8::inline v0::detail
