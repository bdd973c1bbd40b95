// A CSV file of metrics: written row by row, so that it can be plotted while the program runs.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "atomic_file.h"

namespace examples {

class CsvWriter {
 public:
  // Starts a new file, replacing one of the same name.
  CsvWriter(const std::string& path, const std::string& header) : path_(path) {
    open(std::ios::trunc);
    write_line(header);
  }

  // Continues a file after `last_step`: a run that is resumed from an older checkpoint computes the
  // later rows again, so they are dropped. The first column has to be the step.
  static CsvWriter resume(const std::string& path, const std::string& header, int64_t last_step) {
    if (!std::filesystem::exists(path)) {
      return CsvWriter(path, header);
    }
    std::ifstream old(path);
    std::string line;
    if (!std::getline(old, line) || line != header) {
      throw std::runtime_error(path + ": expected the header '" + header + "', got '" + line + "'");
    }
    std::string kept = header + '\n';
    while (std::getline(old, line)) {
      if (std::strtoll(line.c_str(), nullptr, 10) <= last_step) {
        kept += line + '\n';
      }
    }
    write_text_atomically(path, kept);
    return CsvWriter(path);
  }

  void row(const std::vector<std::string>& fields) {
    std::string line;
    for (const std::string& field : fields) {
      line += (line.empty() ? "" : ",") + field;
    }
    write_line(line);
  }

 private:
  explicit CsvWriter(const std::string& path) : path_(path) { open(std::ios::app); }

  void open(std::ios::openmode mode) {
    file_.open(path_, std::ios::out | mode);
    if (!file_) {
      throw std::system_error(errno, std::generic_category(), "cannot write " + path_);
    }
  }

  void write_line(const std::string& line) {
    file_ << line << std::endl;  // flushed: a crash loses no finished row
    if (!file_) {
      throw std::system_error(errno, std::generic_category(), "cannot write " + path_);
    }
  }

  std::string path_;
  std::ofstream file_;
};

}  // namespace examples
