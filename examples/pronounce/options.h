// The command line of pronounce.
#pragma once

#include <string>
#include <vector>

#include "../common/program_options.h"
#include "pronouncer.h"
#include "trainer.h"

namespace pronounce {

struct Options : examples::RecipeOptions {
  bool tf32 = false;
  PronouncerConfig model;
  TrainOptions train;              // its mode and recipe are those that `recipe` and `exclude` name
  std::vector<std::string> words;  // to pronounce at the end
};

// Parses and checks. Answers --help, and a mistake with its explanation, by ending the program.
Options parse_options(int argc, char** argv);

}  // namespace pronounce
