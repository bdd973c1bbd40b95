// Globs over qualified names such as "encoder.layers.0.linear1".
#pragma once

#include <string_view>

namespace te_int8::inline v0::detail {

/// True if `glob` matches the whole of `name`. `?` is one character and `*` any run of them, both
/// without dots; `**` is any run of characters.
inline bool glob_matches(std::string_view glob, std::string_view name) {
  if (glob.empty()) return name.empty();
  if (glob.front() == '*') {
    const bool crosses_dots = glob.starts_with("**");
    const std::string_view rest = glob.substr(crosses_dots ? 2 : 1);
    for (std::size_t taken = 0;; ++taken) {
      if (glob_matches(rest, name.substr(taken))) return true;
      if (taken == name.size() || (!crosses_dots && name[taken] == '.')) return false;
    }
  }
  if (name.empty()) return false;
  const bool one = glob.front() == '?' ? name.front() != '.' : glob.front() == name.front();
  return one && glob_matches(glob.substr(1), name.substr(1));
}

}  // namespace te_int8::inline v0::detail
