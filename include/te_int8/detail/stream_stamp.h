// Where and when something was computed on a device, so that another stream can wait for it.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// Marks the point that the current stream of a device has reached. Free of cost on the CPU.
class StreamStamp {
 public:
  explicit StreamStamp(c10::Device device) {
    if (device.is_cpu() || device.is_meta()) return;
    stream_ = current(device);
    reached_ = std::make_shared<c10::Event>(device.type());
    reached_->record(*stream_);
  }

  /// Makes the current stream wait for that point, and tells the allocator that it uses `tensors`.
  void wait(std::initializer_list<at::Tensor> tensors) const {
    if (!stream_) return;
    const auto now = current(stream_->device());
    if (now == *stream_) return;
    reached_->block(now);
    for (const auto& tensor : tensors) {
      if (tensor.defined()) tensor.record_stream(now);
    }
  }

 private:
  static c10::Stream current(c10::Device device) {
    return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  }

  std::optional<c10::Stream> stream_;
  std::shared_ptr<c10::Event> reached_;
};

}  // namespace te_int8::inline v0::detail
