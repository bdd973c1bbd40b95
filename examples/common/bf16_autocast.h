// LibTorch's bf16 autocast as a scope: Python has torch.autocast, C++ only the switches behind it.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

namespace examples {

class Bf16Autocast {
 public:
  Bf16Autocast(torch::Device device, bool enabled)
      : type_(device.type()),
        was_enabled_(at::autocast::is_autocast_enabled(type_)),
        previous_dtype_(at::autocast::get_autocast_dtype(type_)) {
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(type_, enabled);
    at::autocast::set_autocast_dtype(type_, torch::kBFloat16);
  }

  ~Bf16Autocast() {
    // The casts of weights are cached until the outermost scope ends; they would outlive an update.
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_enabled(type_, was_enabled_);
    at::autocast::set_autocast_dtype(type_, previous_dtype_);
  }

  // Note [Scopes are not copied]: a copy would restore the settings twice, and a moved-from scope
  // would have to know that it restores nothing.
  Bf16Autocast(const Bf16Autocast&) = delete;
  Bf16Autocast& operator=(const Bf16Autocast&) = delete;

 private:
  at::DeviceType type_;
  bool was_enabled_;
  at::ScalarType previous_dtype_;
};

}  // namespace examples
