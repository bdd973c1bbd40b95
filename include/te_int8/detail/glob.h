// Globs over qualified names such as "encoder.layers.0.linear1".
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include <te_int8/config.h>

namespace te_int8::inline v0::detail {

/// True if `glob` matches the whole of `name`. `?` is one character and `*` any run of them, both
/// without dots; `**` is any run of characters.
inline bool glob_matches(std::string_view glob, std::string_view name) {
  // reached[i]: what was read of the glob so far matches the first i characters.
  std::vector<bool> reached(name.size() + 1, false);
  reached[0] = true;
  while (!glob.empty()) {
    const bool run = glob.front() == '*', crosses_dots = glob.starts_with("**");
    std::vector<bool> next(name.size() + 1, false);
    if (run) next[0] = reached[0];
    for (std::size_t i = 0; i < name.size(); ++i) {
      const bool dot = name[i] == '.';
      if (run) {
        next[i + 1] = reached[i + 1] || (next[i] && (crosses_dots || !dot));
      } else {
        next[i + 1] = reached[i] && (glob.front() == '?' ? !dot : glob.front() == name[i]);
      }
    }
    reached = std::move(next);
    glob.remove_prefix(crosses_dots ? 2 : 1);
  }
  return reached[name.size()];
}

}  // namespace te_int8::inline v0::detail
