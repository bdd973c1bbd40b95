// The command line of train_text.
#pragma once

#include <te_int8/te_int8.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../common/checkpoint.h"
#include "gpt.h"
#include "sample.h"
#include "trainer.h"

namespace train_text {

struct Options {
  std::string data;
  std::string device = "auto";
  std::string recipe = "qat";  // none, qat, switchback or int8
  std::vector<std::string> exclude;
  bool compare = false;
  std::string out;  // the folder that --compare writes to
  std::string csv;
  std::string init;  // a checkpoint whose model the run begins with
  std::string checkpoint;
  bool resume = false;
  GptConfig model;
  TrainOptions train;  // its mode and recipe are those that `recipe` and `exclude` name
  SampleOptions sample;
  std::string command_line;  // as it was typed, for reports
};

// Parses and checks. Answers --help, and a mistake with its explanation, by ending the program.
Options parse_options(int argc, char** argv);

// The settings that decide what a run computes: a checkpoint resumes only with the same ones.
examples::Settings run_settings(const Options& options, const std::string& text);

}  // namespace train_text
