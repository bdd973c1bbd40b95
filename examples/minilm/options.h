// The command line of minilm.
#pragma once

#include <string>
#include <vector>

#include "bert.h"

namespace minilm {

struct Options {
  std::string model;  // the folder of the weights and the vocabulary
  std::string device = "auto";
  std::string text;     // a file of texts, one a line; without it, the built-in ones
  std::string cosines;  // a file of texts over which both embeddings are compared
  bool report = false;
  std::vector<Shape> benchmark;
  double seconds = 3;  // of each shape
};

// Parses and checks. Answers --help, and a mistake with its explanation, by ending the program.
Options parse_options(int argc, char** argv);

}  // namespace minilm
