// Random sequences of opening, nesting, throwing and closing scopes leave the models as they were.
#include <array>
#include <random>
#include <stdexcept>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// A tree with a shared module, containers and an attention.
struct TreeImpl : nn::Module {
  TreeImpl() {
    blocks = register_module("blocks", nn::Sequential(nn::Linear(8, 8), nn::ReLU(), nn::Linear(8, 8)));
    attention = register_module("attention", nn::MultiheadAttention(8, 2));
    inner = register_module("inner", Mlp(8));
    shared = register_module("shared", nn::Linear(8, 8));
    register_module("shared_again", shared);
  }
  Tensor forward(const Tensor& x) {
    const auto y = blocks->forward(x);
    return inner(shared(std::get<0>(attention(y, y, y)) + y));
  }
  nn::Sequential blocks{nullptr};
  nn::MultiheadAttention attention{nullptr};
  Mlp inner{nullptr};
  nn::Linear shared{nullptr};
};
TORCH_MODULE(Tree);

/// Scopes over nothing warn, rightly; here that is wanted.
struct Silent : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

class Walk {
 public:
  explicit Walk(unsigned seed) : random_(seed) {}

  void run(int steps) {
    for (int i = 0; i < steps; ++i) step();
    while (!open_.empty()) close(below(open_.size()));
    const torch::NoGradGuard no_grad;
    REQUIRE(snapshot_.holds(*net_));
    REQUIRE(same(net_->forward(x_), before_));
  }

 private:
  std::size_t below(std::size_t count) {
    return std::uniform_int_distribution<std::size_t>(0, count - 1)(random_);
  }
  nn::Module& subtree() {
    nn::Module* choices[] = {net_.get(), net_->blocks.get(), net_->inner.get(),
                             net_->attention.get(), net_->shared.get()};
    return *choices[below(5)];
  }
  Recipe recipe() {
    const Recipe choices[] = {
        Recipe::qat(), Recipe::switchback(), Recipe::int8_training().weights(te_int8::Granularity::per_tensor()),
        Recipe().output(Precision::Full), Recipe().exclude({"**"})};
    return choices[below(5)];
  }
  Mode mode() { return std::array{Mode::QAT, Mode::Inference, Mode::Off}[below(3)]; }

  void step() {
    switch (below(6)) {
      case 0:
      case 1: open_.push_back(std::make_unique<AutocastGuard>(subtree(), mode(), recipe())); break;
      case 2:
        if (!open_.empty()) close(below(open_.size()));  // in any order
        break;
      case 3: {  // a constructor that throws
        auto& where = subtree();
        CHECK_THROWS(AutocastGuard(where, mode(), recipe().include({"no_such_layer"})));
        break;
      }
      case 4: {  // a block that throws, with a scope in it
        try {
          const AutocastGuard guard(subtree(), mode(), recipe());
          const torch::NoGradGuard no_grad;
          net_->forward(x_);
          throw std::runtime_error("on purpose");
        } catch (const std::runtime_error&) {
        }
        break;
      }
      default: {
        const torch::NoGradGuard no_grad;
        CHECK(net_->forward(x_).sizes() == before_.sizes());
      }
    }
  }
  void close(std::size_t which) {
    const auto position = open_.begin() + static_cast<std::ptrdiff_t>(which);
    const auto guard = std::move(*position);
    open_.erase(position);
  }

  std::mt19937 random_;
  Tree net_;
  Snapshot snapshot_{*net_};
  Tensor x_ = torch::randn({3, 2, 8});
  Tensor before_ = [this] {
    const torch::NoGradGuard no_grad;
    return net_->forward(x_);
  }();
  std::vector<std::unique_ptr<AutocastGuard>> open_;
};

}  // namespace

TEST_CASE("1,000 random sequences of scopes leave the model bit for bit as it was", "[guard][scopes]") {
  torch::manual_seed(11);
  Silent silent;
  const c10::WarningUtils::WarningHandlerGuard no_warnings(&silent);
  for (unsigned seed = 0; seed < 1000; ++seed) {
    INFO("seed " << seed);
    Walk(seed).run(8);
  }
}
