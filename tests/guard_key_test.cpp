// Another library may hold the dispatch keys that a scope needs. That can only be tried in a process
// that has not opened a scope yet, so the test starts itself again.
#include <cstdlib>
#include <filesystem>

#include <torch/library.h>

#include <te_int8/detail/deferred.h>

#include "guard_support.h"

using namespace te_int8_test;

namespace {
constexpr auto kChild = "TE_INT8_TEST_CHILD";
}

TEST_CASE("child: a scope refuses a taken dispatch key", "[.][guard_child]") {
  const char* which = std::getenv(kChild);
  if (which == nullptr) SKIP("started by the case below");
  const std::string taken = which;
  const auto key = taken == "owed" ? te_int8::detail::kDeferredKey : te_int8::detail::kRoutingKey;
  torch::Library theirs(torch::Library::IMPL, taken == "kernel" ? "aten" : "_", key, __FILE__, __LINE__);
  if (taken == "kernel") {
    theirs.impl("mm", torch::CppFunction::makeFallthrough());
  } else {
    theirs.fallback(torch::CppFunction::makeFallthrough());
  }
  OneLayer model;
  const Snapshot before(*model);
  const auto message = error_of([&] { AutocastGuard(model, Mode::QAT); });
  CAPTURE(taken, message);
  CHECK(message.find("te_int8::AutocastGuard: expected dispatch key") != std::string::npos);
  CHECK(message.find("another library") != std::string::npos);
  CHECK(before.holds(*model));
  CHECK(model(torch::randn({3, 8})).sizes() == at::IntArrayRef({3, 4}));
}

TEST_CASE("a scope refuses to open where another library holds its dispatch keys", "[guard][key]") {
  const auto which = GENERATE(as<std::string>(), "fallback", "kernel", "owed");
  const auto self = std::filesystem::read_symlink("/proc/self/exe").string();
  const auto command = std::string(kChild) + "=" + which + " '" + self + "' '[guard_child]' > /dev/null";
  CAPTURE(command);
  CHECK(std::system(command.c_str()) == 0);
}
