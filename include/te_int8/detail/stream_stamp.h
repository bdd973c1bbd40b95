// Where and when something was computed on a device.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/types.h>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// The number of the graph that the current stream of a device is being captured into; 0 for none. What is computed
/// during a capture exists when the graph is replayed, and only for what else is in the graph.
TE_INT8_API uint64_t capture_of(c10::Device device);

/// The current stream of a device, and the graph that it is being captured into.
class StreamStamp {
 public:
  explicit StreamStamp(c10::Device device) {
    if (device.is_cpu() || device.is_meta()) return;
    stream_ = current(device);
    capture_ = capture_of(device);
  }

  /// Whether they are the current ones still, so that whatever is computed now comes after. Always on the CPU.
  bool is_current() const {
    return !stream_ || (current(stream_->device()) == *stream_ && capture_of(stream_->device()) == capture_);
  }

 protected:
  static c10::Stream current(c10::Device device) {
    return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  }

  std::optional<c10::Stream> stream_;
  uint64_t capture_ = 0;
};

/// The point that the current stream of a device has reached, which other streams can wait for. Free of cost on the CPU.
class StreamPoint : public StreamStamp {
 public:
  explicit StreamPoint(c10::Device device) : StreamStamp(device) {
    if (!stream_) return;
    reached_ = std::make_shared<c10::Event>(device.type());
    reached_->record(*stream_);
  }

  /// Whether what was computed until then may be used now, by whoever waits for it: not what a graph computes outside of
  /// it.
  bool usable_now() const { return capture_ == 0 || capture_ == capture_of(stream_->device()); }
  /// Whether a graph is being captured now, and this is not a point of it.
  bool before_capture() const {
    return stream_ && capture_ == 0 && capture_of(stream_->device()) != 0;
  }

  /// Makes the current stream wait for that point, and tells the allocator that it uses `tensors`. During a
  /// capture points before it are taken for reached, as a graph cannot wait for what is not in it.
  void wait(std::initializer_list<at::Tensor> tensors) const {
    if (!stream_) return;
    const auto now = current(stream_->device());
    if (now == *stream_ || before_capture()) return;
    reached_->block(now);
    for (const auto& tensor : tensors) {
      if (tensor.defined()) tensor.record_stream(now);
    }
  }

 private:
  std::shared_ptr<c10::Event> reached_;
};

}  // namespace te_int8::inline v0::detail
