// Speed and time left of a training run, shown on a line that rewrites itself on a terminal.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <iostream>
#include <string>
#include <utility>

#include "text.h"

namespace examples {

class Progress {
 public:
  // `first_step` is 0, or the step that a resumed run continues from. `items` names what a step
  // takes: tokens, images.
  Progress(int64_t first_step, int64_t total_steps, std::string items)
      : first_step_(first_step), total_steps_(total_steps), items_name_(std::move(items)) {}

  // Call it when a step begins and when it ended: only what lies between is training time, so that
  // evaluations do not blur the speed.
  void step_begins() { step_start_ = Clock::now(); }
  void step_ended(int64_t step, int64_t items) {
    training_seconds_ += seconds_since(step_start_);
    items_ += items;
    if (terminal_ && seconds_since(last_drawn_) > 0.5) {
      last_drawn_ = Clock::now();
      std::cerr << "\r\033[Kstep " << step << '/' << total_steps_ << "  "
                << grouped(static_cast<int64_t>(items_per_second())) << ' ' << items_name_ << "/s  "
                << clock_time(seconds_left(step)) << " left" << std::flush;
    }
  }

  // Since the last call of restart_speed().
  double items_per_second() const {
    return training_seconds_ > 0 ? static_cast<double>(items_) / training_seconds_ : 0.0;
  }
  void restart_speed() {
    training_seconds_ = 0;
    items_ = 0;
  }

  // From the whole time so far, evaluations included.
  double seconds_left(int64_t step) const {
    const auto done = static_cast<double>(step - first_step_);
    return done > 0 ? seconds_since(start_) / done * static_cast<double>(total_steps_ - step) : 0.0;
  }

  // Removes the line, so that something else can be printed.
  void clear_line() const {
    if (terminal_) {
      std::cerr << "\r\033[K" << std::flush;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  int64_t first_step_;
  int64_t total_steps_;
  std::string items_name_;
  int64_t items_ = 0;  // since the last call of restart_speed()
  double training_seconds_ = 0;
  Clock::time_point start_ = Clock::now();
  Clock::time_point step_start_ = start_;
  Clock::time_point last_drawn_ = start_;
  bool terminal_ = ::isatty(STDERR_FILENO) != 0;
};

}  // namespace examples
