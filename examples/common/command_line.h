// What the examples' command lines have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>

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

inline void add_device_option(CLI::App& app, std::string& device) {
  app.add_option("--device", device, "Where to compute")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
}

// The command as it was typed, for reports.
inline std::string typed_command(int argc, char** argv) {
  std::string command;
  for (int i = 0; i < argc; ++i) {
    command += (i == 0 ? "" : " ") + std::string(argv[i]);
  }
  return command;
}

}  // namespace examples
