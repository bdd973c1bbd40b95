#include "options.h"

#include <CLI/CLI.hpp>
#include <regex>

#include "../common/command_line.h"

#ifndef TE_INT8_DEFAULT_MINILM
#define TE_INT8_DEFAULT_MINILM "minilm"
#endif
#ifndef TE_INT8_DEFAULT_GLOSSES
#define TE_INT8_DEFAULT_GLOSSES "glosses.txt"
#endif

namespace minilm {

namespace {

constexpr int64_t kMaxTokens = 512;

Shape parse_shape(const std::string& text) {
  static const std::regex pattern("([1-9][0-9]{0,3})x([1-9][0-9]{0,3})");
  std::smatch match;
  if (!std::regex_match(text, match, pattern) || std::stoll(match[2]) > kMaxTokens) {
    throw CLI::ValidationError(
        "--benchmark: expected BATCHxTOKENS with at most 512 tokens, as 32x64, or none, got " +
        text);
  }
  return {std::stoll(match[1]), std::stoll(match[2])};
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  options.model = TE_INT8_DEFAULT_MINILM;
  std::vector<std::string> shapes = {"32x64", "1x32"};

  CLI::App app(
      "Embeds sentences by all-MiniLM-L6-v2, in full precision and in INT8: how alike the "
      "sentences\n"
      "are, how alike both embeddings are, and how long each takes.");
  app.get_formatter()->column_width(34);
  app.add_option("--model", options.model, "The folder with model.safetensors and vocab.txt")
      ->capture_default_str();
  examples::add_device_option(app, options.device);
  app.add_option(
         "--text", options.text, "A file of sentences, one a line, instead of the built-in ones")
      ->check(CLI::ExistingFile);
  app.add_option(
         "--cosines", options.cosines,
         "Compare both embeddings over the lines of a file, and do nothing else; without a file: "
         "2,000 glosses of WordNet")
      ->expected(0, 1)
      ->default_str(TE_INT8_DEFAULT_GLOSSES)
      ->check(CLI::ExistingFile);
  app.add_flag("--report", options.report, "Print what the scope did with each layer");
  app.add_option("--benchmark", shapes, "Shapes to time, BATCHxTOKENS, or none")
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "Time for each shape")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();

  examples::parse_or_exit(app, argc, argv, [&] {
    if (shapes != std::vector<std::string>{"none"}) {
      for (const std::string& shape : shapes) {
        options.benchmark.push_back(parse_shape(shape));
      }
    }
  });
  return options;
}

}  // namespace minilm
