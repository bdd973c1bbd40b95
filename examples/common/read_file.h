// A file's bytes.
#pragma once

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace examples {

// A file that cannot be read is an error that names it.
inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) {
    throw std::runtime_error(
        "cannot read " + path + ": " + (file ? "it is a directory" : std::strerror(errno)));
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace examples
