// The command line of fashion.
#pragma once

#include <cstdint>
#include <string>

#include "trainer.h"

namespace fashion {

struct Options {
  std::string data;  // the folder
  std::string device = "auto";
  std::string model = "resnet";  // or vit
  std::string size = "small";    // or large
  std::string recipe = "qat";    // or none
  bool compare = false;
  std::string out;  // the folder that --compare writes to
  std::string csv;
  int64_t train_images = 0;
  TrainOptions train;        // its mode is what `recipe` names
  std::string command_line;  // as it was typed, for reports
};

// Parses and checks. Answers --help, and a mistake with its explanation, by ending the program.
Options parse_options(int argc, char** argv);

}  // namespace fashion
