// The command line of fashion.
#pragma once

#include <cstdint>
#include <string>

#include "../common/program_options.h"
#include "trainer.h"

namespace fashion {

struct Options : examples::ProgramOptions {  // `data` is the folder, `recipe` qat or none
  std::string model = "resnet";              // or vit
  std::string size = "small";                // or large
  int64_t train_images = 0;
  TrainOptions train;  // its mode is what `recipe` names
};

// Parses and checks. Answers --help, and a mistake with its explanation, by ending the program.
Options parse_options(int argc, char** argv);

}  // namespace fashion
