// How the examples' programs begin and end.
#pragma once

#include <torch/torch.h>

#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <string>

#include "device.h"
#include "interrupt.h"
#include "reproducible.h"

namespace examples {

inline constexpr int kInterrupted = 130;  // what shells report for a program ended by Ctrl-C

// The exit status of a run that is finished, or that Ctrl-C ended.
inline int exit_code(bool finished, const std::string& message_if_not) {
  if (finished) {
    return EXIT_SUCCESS;
  }
  std::cout << message_if_not << '\n';
  return kInterrupted;
}

// `main` is all of it and gives the exit status; an error ends the program with its message.
inline int run_program(const std::string& name, const std::function<int()>& main) {
  try {
    return main();
  } catch (const c10::Error& error) {
    std::cerr << name << ": " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << name << ": " << error.what() << '\n';
  }
  return EXIT_FAILURE;
}

// Says on which device the program runs, and why.
inline torch::Device say_device(const std::string& name, const std::string& wanted) {
  const DeviceChoice choice = choose_device(wanted);
  std::cout << name << " on " << choice.device << " (" << choice.reason << ")" << std::endl;
  return choice.device;
}

// What a training program does first: Ctrl-C ends it between two steps, and two runs give the same bits.
inline torch::Device begin_training(const std::string& name, const std::string& wanted) {
  catch_interrupts();
  make_reproducible();
  return say_device(name, wanted);
}

}  // namespace examples
