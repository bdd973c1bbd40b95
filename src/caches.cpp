// The caches of the process, and what it knows of its threads' ways through models.
#include <te_int8/detail/activation_codes.h>
#include <te_int8/detail/panel_cache.h>
#include <te_int8/detail/weight_codes.h>

namespace te_int8::inline v0::detail {

WeightCodeCache& WeightCodeCache::instance() {
  // Never destroyed: a backward may still come while the process ends.
  static auto* cache = new WeightCodeCache;
  return *cache;
}

Readers& Readers::instance() {
  static auto* readers = new Readers;
  return *readers;
}

Way& Way::of_thread() {
  static thread_local Way way;
  return way;
}

PanelCache& PanelCache::instance() {
  static auto* cache = new PanelCache;
  return *cache;
}

void forget_codes(const c10::TensorImpl* weight) noexcept {
  WeightCodeCache::instance().forget(weight);
}

}  // namespace te_int8::inline v0::detail
