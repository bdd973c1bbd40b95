// Ctrl-C as a question that a training loop can ask between two steps.
#pragma once

#include <csignal>

namespace examples {

inline volatile std::sig_atomic_t interrupt_requested = 0;

// The first Ctrl-C (or SIGTERM) only raises the flag; a second one ends the program at once.
inline void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupt_requested = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

inline bool interrupted() { return interrupt_requested != 0; }

}  // namespace examples
