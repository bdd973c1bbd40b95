// Texts: numbers and errors as people read them, and a text's own number.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdio>
#include <iomanip>
#include <sstream>
#include <string>

namespace examples {

inline std::string fixed(double value, int digits) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << value;
  return out.str();
}

// 1234567 -> 1,234,567
inline std::string grouped(int64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    const bool after_digit = i > 0 && digits[i - 1] != '-';
    if (after_digit && (digits.size() - i) % 3 == 0) {
      text += ',';
    }
    text += digits[i];
  }
  return text;
}

// 75.4 -> 1:15; hours appear when there are any.
inline std::string clock_time(double seconds) {
  const auto total = static_cast<int64_t>(seconds);
  char buffer[32];
  if (total >= 3600) {
    std::snprintf(
        buffer, sizeof buffer, "%d:%02d:%02d", static_cast<int>(total / 3600),
        static_cast<int>(total / 60 % 60), static_cast<int>(total % 60));
  } else {
    std::snprintf(
        buffer, sizeof buffer, "%d:%02d", static_cast<int>(total / 60),
        static_cast<int>(total % 60));
  }
  return buffer;
}

// A number that differs when the text does: FNV-1a.
inline uint64_t hash_of(const std::string& text) {
  uint64_t hash = 14695981039346656037u;
  for (const char character : text) {
    hash = (hash ^ static_cast<unsigned char>(character)) * 1099511628211u;
  }
  return hash;
}

// What LibTorch says went wrong, without the details of where.
inline std::string first_line(const c10::Error& error) {
  const std::string message = error.what_without_backtrace();
  return message.substr(0, message.find('\n'));
}

}  // namespace examples
