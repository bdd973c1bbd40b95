// The state of a tensor that codes were made of.
//
// A state is told apart by storage and version; storages are pinned by weak pointers, so that an
// address cannot come back as another storage. Writes that LibTorch does not tell of are the caches' matter.
#pragma once

#include <vector>

#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// What a tensor is a view of, or itself. Autograd knows, but for inference tensors.
inline const at::TensorBase& base_of(const at::Tensor& tensor) {
  const auto* view = torch::autograd::impl::get_view_autograd_meta(tensor);
  return view != nullptr && view->has_bw_view() ? view->get_backward_view().base_ : tensor;
}

/// A part of a storage and the version of what it holds.
class StorageState {
 public:
  explicit StorageState(const at::Tensor& tensor)
      : storage_(tensor.storage().getWeakStorageImpl()),
        version_(version_of(tensor)),
        dtype_(tensor.scalar_type()),
        offset_(tensor.storage_offset()) {}

  bool is_state_of(const at::Tensor& tensor) const {
    return tensor.storage().unsafeGetStorageImpl() == storage_._unsafe_get_target() &&
           version_of(tensor) == version_ && tensor.scalar_type() == dtype_ &&
           tensor.storage_offset() == offset_;
  }
  bool expired() const { return storage_.expired(); }
  bool is_of_storage_of(const at::Tensor& tensor) const {
    return tensor.storage().unsafeGetStorageImpl() == storage_._unsafe_get_target();
  }

 private:
  static uint32_t version_of(const at::Tensor& tensor) {
    return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
  }
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  uint32_t version_;
  at::ScalarType dtype_;
  int64_t offset_;
};

/// The same with the shape in which the storage is read.
class LaidOutState {
 public:
  explicit LaidOutState(const at::Tensor& tensor)
      : storage_(tensor), sizes_(tensor.sizes().vec()), strides_(tensor.strides().vec()) {}

  bool is_state_of(const at::Tensor& tensor) const {
    return storage_.is_state_of(tensor) && tensor.sizes() == at::IntArrayRef(sizes_) &&
           tensor.strides() == at::IntArrayRef(strides_);
  }
  /// The same rows in the same order, perhaps under another shape.
  bool has_rows_of(const at::Tensor& tensor) const {
    return storage_.is_state_of(tensor) && tensor.size(-1) == sizes_.back() &&
           tensor.numel() == c10::multiply_integers(sizes_) && tensor.is_contiguous() &&
           contiguous();
  }
  bool expired() const { return storage_.expired(); }
  bool is_of_storage_of(const at::Tensor& tensor) const { return storage_.is_of_storage_of(tensor); }

 private:
  bool contiguous() const {
    int64_t expected = 1;
    for (std::size_t i = sizes_.size(); i-- > 0; expected *= sizes_[i]) {
      if (sizes_[i] != 1 && strides_[i] != expected) return false;
    }
    return true;
  }

  StorageState storage_;
  std::vector<int64_t> sizes_, strides_;
};

}  // namespace te_int8::inline v0::detail
