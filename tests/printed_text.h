// What a program prints.
#pragma once

#include <iostream>
#include <sstream>
#include <string>

namespace te_int8_tests {

// What is written to std::cout meanwhile.
class PrintedText {
 public:
  PrintedText() : previous_(std::cout.rdbuf(text_.rdbuf())) {}
  ~PrintedText() { std::cout.rdbuf(previous_); }
  PrintedText(const PrintedText&) = delete;
  PrintedText& operator=(const PrintedText&) = delete;
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* previous_;
};

}  // namespace te_int8_tests
