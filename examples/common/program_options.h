// What the user of an example that trains can choose, whatever it trains.
#pragma once

#include <string>
#include <vector>

namespace examples {

struct ProgramOptions {
  std::string data;
  std::string device = "auto";
  std::string recipe = "qat";  // see recipes.h
  bool compare = false;
  std::string out;  // the folder that --compare writes to
  std::string csv;
  std::string command_line;  // as it was typed, for reports
};

// Of an example that lets single layers stay in full precision.
struct RecipeOptions : ProgramOptions {
  std::vector<std::string> exclude;
};

}  // namespace examples
