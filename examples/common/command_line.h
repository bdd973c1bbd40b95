// What the examples' command lines have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <functional>
#include <string>

#include "program_options.h"

namespace examples {

// CLI11's own checks of a range print its other end too, a number of 309 digits.
inline CLI::Validator number_above(double limit, bool limit_itself, const std::string& name) {
  const auto check = [=](const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool valid = *end == '\0' && (value > limit || (limit_itself && value == limit));
    return valid ? "" : "expected a number " + name + ", got " + text;
  };
  return CLI::Validator(check, name);
}
inline CLI::Validator positive() { return number_above(0, false, "above 0"); }
inline CLI::Validator not_negative() { return number_above(0, true, "from 0 on"); }

inline void require(bool condition, const std::string& message) {
  if (!condition) {
    throw CLI::ValidationError(message);
  }
}

inline void add_device_option(CLI::App& app, std::string& device) {
  app.add_option("--device", device, "Where to compute")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
}

// Returns --compare, which excludes what is about one run alone.
inline CLI::Option* add_compare_options(
    CLI::App& app, ProgramOptions& program, const std::string& group) {
  auto* compare = app.add_flag(
                         "--compare", program.compare,
                         "Train in full precision and by the recipe, evaluate both in full "
                         "precision and in INT8")
                      ->group(group);
  app.add_option("--out", program.out, "The folder of --compare's tables and curves")
      ->needs(compare)
      ->capture_default_str()
      ->group(group);
  return compare;
}

inline void check_compare(const ProgramOptions& program) {
  require(
      program.recipe != "none" || !program.compare,
      "--compare needs a recipe other than none to compare");
}

// Parses, and lets `finish` fill in and check what no single option can. Answers --help, and a
// mistake with its explanation, by ending the program. Returns the command as it was typed.
inline std::string parse_or_exit(
    CLI::App& app, int argc, char** argv, const std::function<void()>& finish) {
  try {
    app.parse(argc, argv);
    finish();
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  std::string command;
  for (int i = 0; i < argc; ++i) {
    command += (i == 0 ? "" : " ") + std::string(argv[i]);
  }
  return command;
}

}  // namespace examples
