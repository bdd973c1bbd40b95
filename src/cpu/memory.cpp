#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <mutex>

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace te_int8::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kMostWaiting = std::size_t{64} << 20;

struct Block {
  void* data;
  std::size_t bytes;
};

/// Large blocks that are used again by tensors of the same size. One in a process.
class Blocks {
 public:
  static Blocks& instance() {
    static auto* blocks = new Blocks;  // tensors may outlive static objects
    return *blocks;
  }

  void* take(std::size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = std::ranges::find(waiting_, bytes, &Block::bytes);
      if (found != waiting_.end()) {
        auto* data = found->data;
        waiting_bytes_ -= bytes;
        waiting_.erase(found);
        return data;
      }
    }
    auto* data = std::aligned_alloc(kHugePage, bytes);
    TORCH_CHECK_WITH(
        OutOfMemoryError, data != nullptr, "te_int8: expected ", bytes, " bytes of memory, got none");
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);  // a wish: refused, the pages are ordinary ones
#endif
    return data;
  }

  void give_back(const Block& block) {
    const std::lock_guard lock(mutex_);
    waiting_.push_front(block);  // the next to be taken: it may still be in the cache
    waiting_bytes_ += block.bytes;
    while (waiting_bytes_ > kMostWaiting) {
      std::free(waiting_.back().data);
      waiting_bytes_ -= waiting_.back().bytes;
      waiting_.pop_back();
    }
  }

 private:
  std::mutex mutex_;
  std::deque<Block> waiting_;
  std::size_t waiting_bytes_ = 0;
};

/// LibTorch's view of them, so that a tensor can be resized like any other.
class BlockAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes < kHugePage) return c10::GetCPUAllocator()->allocate(bytes);
    const std::size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    auto block = std::make_unique<Block>(Block{nullptr, whole});
    block->data = Blocks::instance().take(whole);
    auto* data = block->data;
    return {data, block.release(), &give_back, at::kCPU};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void give_back(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    Blocks::instance().give_back(*block);
  }
};

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  static auto* allocator = new BlockAllocator;
  return at::detail::empty_generic(
      sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

}  // namespace te_int8::cpu
