// What --recipe names: none, qat, switchback or int8.
#pragma once

#include <te_int8/te_int8.h>

#include <string>

namespace examples {

// The gradient of logits has one large value in a row and many small ones, which INT8 would lose:
// the backward of a model's `head` is exact.
inline te_int8::Recipe recipe_named(const std::string& name) {
  if (name == "switchback") {
    return te_int8::Recipe::switchback().rule("head", te_int8::Recipe::qat());
  }
  if (name == "int8") {
    return te_int8::Recipe::int8_training().rule("head", te_int8::Recipe::qat());
  }
  return te_int8::Recipe::qat();
}

inline te_int8::Mode training_mode(const std::string& recipe) {
  return recipe == "none" ? te_int8::Mode::Off : te_int8::Mode::QAT;
}

// A model is evaluated in the precision that it is trained in.
inline te_int8::Mode evaluation_mode(te_int8::Mode training) {
  return training == te_int8::Mode::Off ? te_int8::Mode::Off : te_int8::Mode::Inference;
}

inline std::string recipe_title(const std::string& recipe) {
  return recipe == "none"   ? "full precision"
         : recipe == "qat"  ? "QAT"
         : recipe == "int8" ? "INT8 training"
                            : "SwitchBack";
}

}  // namespace examples
