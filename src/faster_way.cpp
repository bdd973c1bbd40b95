#include <te_int8/detail/faster_way.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <sstream>
#include <tuple>

#include <ATen/Parallel.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include "bucket.h"

namespace te_int8::inline v0::detail {
namespace {

using Key = std::tuple<
    Operation, c10::DeviceType, c10::DeviceIndex, std::vector<at::ScalarType>, int64_t, std::vector<int64_t>, int>;

Key key_of(const CallKind& kind) {
  return {kind.operation, kind.device.type(), kind.device.index(), kind.dtypes, bucket(kind.rows), kind.sizes, at::get_num_threads()};
}

struct Answers {
  std::shared_mutex mutex;
  std::map<Key, bool> in_full_precision;

  std::optional<bool> of(const Key& key) {
    const std::shared_lock lock(mutex);
    const auto found = in_full_precision.find(key);
    return found == in_full_precision.end() ? std::nullopt : std::optional(found->second);
  }
  void add(const Key& key, bool answer) {
    const std::unique_lock lock(mutex);
    in_full_precision.emplace(key, answer);
  }
};

/// Never destroyed: a call may still come while the process ends.
Answers& answers() {
  static auto* all = new Answers;
  return *all;
}

enum class Forced { No, Int8, FullPrecision };
std::atomic<Forced> forced = Forced::No;

using Ways = std::array<const std::function<void()>*, 2>;

/// Microseconds of a call each way: medians of calls in turns, each after an untimed one of its own, which finds memory and caches as
/// other work has left them.
std::array<double, 2> times_of(const Ways& ways) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t kMostRounds = 11;
  constexpr std::chrono::milliseconds kEnough(100);
  std::array<std::vector<double>, 2> times;
  for (const auto* way : ways) (*way)();  // makes what is made once
  const auto start = Clock::now();
  for (std::size_t round = 0; round < kMostRounds && (round == 0 || Clock::now() - start < kEnough); ++round) {
    for (std::size_t i = 0; i < ways.size(); ++i) {
      (*ways.at(i))();
      const auto begin = Clock::now();
      (*ways.at(i))();
      times.at(i).push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    }
  }
  std::array<double, 2> medians{};
  for (std::size_t i = 0; i < ways.size(); ++i) {
    const auto middle = times.at(i).begin() + static_cast<std::ptrdiff_t>(times.at(i).size() / 2);
    std::nth_element(times.at(i).begin(), middle, times.at(i).end());
    medians.at(i) = *middle;
  }
  return medians;
}

/// `failure`: of full precision.
void print(const CallKind& kind, double int8, double full_precision, const std::string& failure) {
  static const bool wanted = std::getenv("TE_INT8_PRINT_CHOICES") != nullptr;
  if (!wanted) return;
  std::ostringstream line;
  line << "te_int8: " << (kind.operation == Operation::Convolution ? "convolution of " : "linear layer of ") << bucket(kind.rows)
       << (kind.operation == Operation::Convolution ? " samples" : " rows") << ", " << kind.dtypes.front() << " on " << kind.device
       << ", sizes " << c10::ArrayRef<int64_t>(kind.sizes) << ": INT8 " << int8 << " us, full precision ";
  if (failure.empty()) {
    line << full_precision << " us\n";
  } else {
    line << "fails: " << failure << '\n';
  }
  std::cerr << line.str();
}

}  // namespace

bool is_faster_in_full_precision(
    const CallKind& kind, const std::function<void()>& in_int8, const std::function<void()>& in_full_precision) {
  constexpr double kTie = 0.95;  // below it a difference is more than noise
  if (forced != Forced::No) return forced == Forced::FullPrecision;
  if (!kind.device.is_cpu()) return false;
  const auto key = key_of(kind);
  if (const auto known = answers().of(key)) return *known;
  static auto* timing = new std::mutex;
  const std::unique_lock lock(*timing, std::try_to_lock);  // others' work would disturb the timing
  if (!lock.owns_lock()) return false;
  if (const auto known = answers().of(key)) return *known;
  std::string failure;
  const std::function<void()> try_full_precision = [&] {  // an error must not take away what INT8 can do
    if (!failure.empty()) return;
    try {
      in_full_precision();
    } catch (const c10::Error& error) {
      failure = error.what_without_backtrace();
    }
  };
  const auto [int8, full_precision] = times_of({&in_int8, &try_full_precision});
  print(kind, int8, full_precision, failure);
  const bool answer = failure.empty() && full_precision < kTie * int8;
  answers().add(key, answer);
  return answer;
}

ForcedAnswer::ForcedAnswer(bool in_full_precision) { forced = in_full_precision ? Forced::FullPrecision : Forced::Int8; }
ForcedAnswer::~ForcedAnswer() { forced = Forced::No; }

}  // namespace te_int8::inline v0::detail
