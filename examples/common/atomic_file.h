// Writes files so that a crash leaves the old file or the new one, never half of one.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <system_error>

namespace examples {

// Forces what was written under `path`, a file or a directory, onto the disk.
inline void sync_to_disk(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int error = errno;
  if (descriptor >= 0) {
    ::close(descriptor);
  }
  if (!synced) {
    throw std::system_error(error, std::generic_category(), "cannot sync " + path.string());
  }
}

// `write` gets the name of a temporary file beside `path` and fills it. Then the file is synced and
// takes its final name in one step; syncing the directory makes the new name last as well.
inline void write_atomically(
    const std::filesystem::path& path, const std::function<void(const std::string&)>& write) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  try {
    write(temporary.string());
    sync_to_disk(temporary);
    std::filesystem::rename(temporary, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  sync_to_disk(path.has_parent_path() ? path.parent_path() : ".");
}

inline void write_text_atomically(const std::filesystem::path& path, const std::string& text) {
  write_atomically(path, [&](const std::string& temporary) {
    std::ofstream file(temporary, std::ios::binary);
    file << text << std::flush;
    if (!file) {
      throw std::system_error(errno, std::generic_category(), "cannot write " + temporary);
    }
  });
}

}  // namespace examples
