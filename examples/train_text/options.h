// The command line of train_text.
#pragma once

#include <string>

#include "../common/checkpoint.h"
#include "../common/program_options.h"
#include "gpt.h"
#include "sample.h"
#include "trainer.h"

namespace train_text {

struct Options : examples::RecipeOptions {
  std::string init;  // a checkpoint whose model the run begins with
  std::string checkpoint;
  bool resume = false;
  GptConfig model;
  TrainOptions train;  // its mode and recipe are those that `recipe` and `exclude` name
  SampleOptions sample;
};

// Parses and checks. Answers --help, and a mistake with its explanation, by ending the program.
Options parse_options(int argc, char** argv);

// The settings that decide what a run computes: a checkpoint resumes only with the same ones.
examples::Settings run_settings(const Options& options, const std::string& text);

}  // namespace train_text
