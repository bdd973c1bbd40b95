// What a recipe selects and how the scope reports it: globs, rules, back ends, warnings, the table.
#include <cstdlib>
#include <optional>

#include <te_int8/detail/glob.h>

#include "guard_support.h"

using namespace te_int8_test;

namespace {

/// Two blocks with an attention, a Linear and a norm each, and a head.
struct BlockImpl : nn::Module {
  BlockImpl() {
    attention = register_module("attention", nn::MultiheadAttention(8, 2));
    fc = register_module("fc", nn::Linear(8, 8));
    norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({8})));
  }
  Tensor forward(const Tensor& x) { return norm(fc(std::get<0>(attention(x, x, x)))); }
  nn::MultiheadAttention attention{nullptr};
  nn::Linear fc{nullptr};
  nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(Block);

struct NetImpl : nn::Module {
  NetImpl() {
    blocks = register_module("blocks", nn::ModuleList(Block(), Block()));
    head = register_module("head", nn::Linear(8, 4));
  }
  Tensor forward(const Tensor& x) {
    return head(blocks->at<BlockImpl>(1).forward(blocks->at<BlockImpl>(0).forward(x)));
  }
  nn::ModuleList blocks{nullptr};
  nn::Linear head{nullptr};
};
TORCH_MODULE(Net);

const std::vector<std::string> kLayers{
    "blocks.0.attention.in_proj", "blocks.0.attention.out_proj", "blocks.0.fc",
    "blocks.1.attention.in_proj", "blocks.1.attention.out_proj", "blocks.1.fc", "head"};

/// The layers that a scope with this recipe quantizes, each checked by its calls.
std::vector<std::string> quantized_by(const Recipe& recipe) {
  Net model;
  const torch::NoGradGuard no_grad;
  const AutocastGuard guard(model, Mode::QAT, recipe);
  model(torch::randn({3, 2, 8}));
  std::vector<std::string> names;
  for (const auto& line : guard.report().layers) {
    CHECK((line.action == "quantized") == (line.calls == 1));
    CHECK((line.action == "quantized") == line.reason.empty());
    if (line.action == "quantized") names.push_back(line.name);
  }
  return names;
}

std::vector<std::string> without(const std::vector<std::size_t>& left_out) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < kLayers.size(); ++i) {
    if (std::ranges::find(left_out, i) == left_out.end()) names.push_back(kLayers[i]);
  }
  return names;
}

/// TE_INT8_BACKEND for a block.
class BackendVariable {
 public:
  explicit BackendVariable(const char* value) {
    if (const char* before = std::getenv("TE_INT8_BACKEND")) before_ = before;
    setenv("TE_INT8_BACKEND", value, 1);
  }
  ~BackendVariable() {
    if (before_) {
      setenv("TE_INT8_BACKEND", before_->c_str(), 1);
    } else {
      unsetenv("TE_INT8_BACKEND");
    }
  }
  BackendVariable(const BackendVariable&) = delete;
  BackendVariable& operator=(const BackendVariable&) = delete;

 private:
  std::optional<std::string> before_;
};

}  // namespace

TEST_CASE("globs: '*' and '?' stop at a dot, '**' does not", "[guard][recipe]") {
  using te_int8::detail::glob_matches;
  CHECK(glob_matches("", ""));
  CHECK_FALSE(glob_matches("", "a"));
  CHECK_FALSE(glob_matches("a", ""));
  CHECK(glob_matches("*", ""));
  CHECK(glob_matches("*", "head"));
  CHECK_FALSE(glob_matches("*", "a.b"));
  CHECK(glob_matches("**", ""));
  CHECK(glob_matches("**", "a.b.c"));
  CHECK(glob_matches("a.**", "a.b.c"));
  CHECK_FALSE(glob_matches("a.**", "a"));
  CHECK_FALSE(glob_matches("a.**", "ab.c"));
  CHECK(glob_matches("**.fc", "a.b.fc"));
  CHECK_FALSE(glob_matches("**.fc", "fc"));
  CHECK(glob_matches("**fc", "fc"));
  CHECK(glob_matches("a.*.c", "a.b.c"));
  CHECK_FALSE(glob_matches("a.*.c", "a.b.b.c"));
  CHECK(glob_matches("fc?", "fc1"));
  CHECK_FALSE(glob_matches("fc?", "fc"));
  CHECK_FALSE(glob_matches("a?b", "a.b"));
  CHECK_FALSE(glob_matches("fc", "fc1"));
  CHECK_FALSE(glob_matches("FC", "fc"));
  std::string stars;
  for (int i = 0; i < 40; ++i) stars += "*a**";
  CHECK_FALSE(glob_matches(stars + "b", std::string(200, 'a')));  // would never end by trying all splits
}

TEST_CASE("include and exclude select layers by name, and exclude wins", "[guard][recipe]") {
  CHECK(quantized_by({}) == kLayers);
  CHECK(quantized_by(Recipe().exclude({"head"})) == without({6}));
  CHECK(quantized_by(Recipe().exclude({"blocks.0.**"})) == without({0, 1, 2}));
  CHECK(quantized_by(Recipe().exclude({"**.in_proj", "**.fc"})) == without({0, 2, 3, 5}));
  CHECK(quantized_by(Recipe().include({"blocks.*.fc"})) == without({0, 1, 3, 4, 6}));
  CHECK(quantized_by(Recipe().include({"blocks.**"}).exclude({"**.out_proj"})) == without({1, 4, 6}));
  CHECK(quantized_by(Recipe().include({"head"}).exclude({"blocks.**"})) == std::vector<std::string>{"head"});
}

TEST_CASE("of the rules that match a layer the last one wins, all of it", "[guard][recipe]") {
  const auto full = Recipe().output(Precision::Full);
  CHECK(quantized_by(Recipe().rule("blocks.0.**", full)) == without({0, 1, 2}));
  CHECK(quantized_by(Recipe().rule("blocks.**", full).rule("**.fc", Recipe())) == without({0, 1, 3, 4}));
  CHECK(quantized_by(Recipe().rule("**.fc", Recipe()).rule("blocks.**", full)) == without({0, 1, 2, 3, 4, 5}));
  CHECK(quantized_by(Recipe(full).rule("head", Recipe())) == std::vector<std::string>{"head"});
  SECTION("include and exclude of the rule's recipe do not count") {
    CHECK(quantized_by(Recipe().rule("head", Recipe().exclude({"**"}).include({"nothing"}))) == kLayers);
  }
  SECTION("a rule does not bring back what is excluded") {
    CHECK(quantized_by(Recipe().exclude({"head"}).rule("head", Recipe())) == without({6}));
  }
}

TEST_CASE("a glob that matches nothing is an error that lists the layers", "[guard][recipe]") {
  Net model;
  const auto what = GENERATE(as<std::string>(), "include", "exclude", "rule");
  const auto glob = GENERATE(as<std::string>(), "hed", "blocks.0", "blocks.*.norm", "");
  Recipe recipe;
  if (what == "include") recipe.include({"head", glob});
  if (what == "exclude") recipe.exclude({"head", glob});
  if (what == "rule") recipe.rule(glob, {});
  const auto message = error_of([&] { AutocastGuard(model, Mode::QAT, recipe); });
  CAPTURE(message);
  CHECK(message.find(what + " \"" + glob + "\"") != std::string::npos);
  for (const auto& layer : kLayers) CHECK(message.find(layer) != std::string::npos);
}

TEST_CASE("the root layer is selected by the empty glob", "[guard][recipe]") {
  nn::Linear model(8, 4);
  const AutocastGuard guard(model, Mode::QAT, Recipe().include({""}));
  CHECK(line_of(guard.report(), "").action == "quantized");
}

TEST_CASE("a rule inside a rule is an error", "[guard][recipe]") {
  const auto message = error_of([] { Recipe().rule("a", Recipe().rule("b", {})); });
  CHECK(message.find("te_int8::Recipe::rule") != std::string::npos);
  CHECK(message.find("\"a\"") != std::string::npos);
}

TEST_CASE("TE_INT8_BACKEND chooses for \"auto\", and an explicit recipe wins over it", "[guard][recipe]") {
  Mlp model;
  const auto backend_of = [&](const Recipe& recipe) {
    return line_of(AutocastGuard(model, Mode::QAT, recipe).report(), "fc1").backend;
  };
  CHECK(backend_of(Recipe().backend("reference")) == "reference");
  const auto usual = backend_of({});
  CHECK((usual == "cpu") == test_device().is_cpu());
  {
    const BackendVariable variable("reference");
    CHECK(backend_of({}) == "reference");
  }
  {
    const BackendVariable variable("abacus");
    CHECK(backend_of(Recipe().backend("reference")) == "reference");
    const auto message = error_of([&] { backend_of({}); });
    CHECK(message.find("TE_INT8_BACKEND") != std::string::npos);
    CHECK(message.find("'abacus'") != std::string::npos);
    CHECK(message.find("'reference'") != std::string::npos);
    CHECK(error_of([&] { backend_of(Recipe().backend("reference").rule("fc2", {})); }) == message);
  }
  {
    const BackendVariable variable("");
    CHECK(backend_of({}) == usual);
  }
  const auto message = error_of([&] { backend_of(Recipe().backend("abacus")); });
  CHECK(message.find("Recipe::backend") != std::string::npos);
  CHECK(message.find("'abacus'") != std::string::npos);
}

TEST_CASE("backends() lists the reference, usable everywhere", "[guard][recipe]") {
  const auto backends = te_int8::backends();
  const auto reference = std::ranges::find_if(
      backends, [](const te_int8::BackendInfo& backend) { return backend.name == "reference"; });
  REQUIRE(reference != backends.end());
  CHECK(reference->usable);
  for (const auto& backend : backends) CHECK(backend.usable == backend.reason.empty());
}

TEST_CASE("a scope with nothing to quantize warns, others do not", "[guard][recipe]") {
  Warnings warnings;
  Mlp model;
  nn::ReLU without_layers;
  { const AutocastGuard guard(model, Mode::QAT); }
  { const AutocastGuard guard(model, Mode::Off); }
  CHECK(warnings.messages.empty());
  const auto warns = [&](auto& module, const Recipe& recipe) {
    warnings.messages.clear();
    { const AutocastGuard guard(module, Mode::Inference, recipe); }
    return warnings.messages.size() == 1 && warnings.tell_of("nothing to quantize");
  };
  CHECK(warns(model, Recipe().exclude({"*"})));
  CHECK(warns(model, Recipe().output(Precision::Full)));
  CHECK(warns(without_layers, {}));
}

TEST_CASE("the report names each layer, its type, and why it is not quantized", "[guard][recipe]") {
  Net model;
  const AutocastGuard guard(model, Mode::QAT, Recipe().include({"blocks.**"}).exclude({"blocks.0.fc"}));
  model(torch::randn({3, 2, 8}));
  const auto report = guard.report();
  CHECK(line_of(report, "blocks.0.fc").reason == "excluded");
  CHECK(line_of(report, "head").reason == "not included");
  CHECK(line_of(report, "blocks.0.norm").action == "full precision");
  CHECK(line_of(report, "blocks.0.norm").reason != "");
  CHECK(line_of(report, "blocks.1.fc").type.find("LinearImpl") != std::string::npos);
  CHECK(line_of(report, "blocks.1.attention.in_proj").type.find("MultiheadAttentionImpl") != std::string::npos);
  CHECK(line_of(report, "head").backend == "");
  CHECK(report.layers.size() == kLayers.size() + 2);
}

TEST_CASE("the printed report shows every layer, and warns of those never called", "[guard][recipe]") {
  Mlp model;
  const AutocastGuard guard(model, Mode::QAT, Recipe().exclude({"head"}));
  const auto text = [&] {
    std::ostringstream stream;
    stream << guard.report() << 0.5;
    return stream.str();
  };
  model->fc1(torch::randn({2, 16}));
  CHECK(calls_of(guard, "fc2") == 0);
  CHECK(text().find("warning: 1 quantized layer(s) were never called") != std::string::npos);
  model(torch::randn({2, 16}));
  CHECK(text().find("warning") == std::string::npos);
  for (const auto* word : {"layer", "calls", "fc1", "fc2", "head", "excluded", "quantized", "0.5"}) {
    CAPTURE(word);
    CHECK(text().find(word) != std::string::npos);
  }
}
