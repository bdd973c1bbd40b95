#include "wordpiece.h"

#include <utf8proc.h>

#include <algorithm>
#include <fstream>
#include <stdexcept>
#include <utility>

namespace minilm {

namespace {

constexpr size_t kMaxWordCharacters = 100;  // a longer word is unknown as a whole
constexpr utf8proc_int32_t kReplacement = 0xFFFD;

bool is_space(utf8proc_int32_t c) {
  const auto category = utf8proc_category(c);
  return c == '\t' || c == '\n' || c == '\r' || category == UTF8PROC_CATEGORY_ZS ||
         category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

// Control, format and private-use characters leave no trace, nor do bytes that are no UTF-8.
bool is_dropped(utf8proc_int32_t c) {
  const auto category = utf8proc_category(c);
  return c == kReplacement || category == UTF8PROC_CATEGORY_CC ||
         category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO;
}

// All of ASCII that is neither a letter nor a digit counts, also what Unicode calls a symbol, as '$'.
bool is_punctuation(utf8proc_int32_t c) {
  if (c < 128) {
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
           (c >= 123 && c <= 126);
  }
  const auto category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

// The blocks of Han ideographs, each of which is a word. Kana and Hangul are written in words.
bool is_ideograph(utf8proc_int32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2CEAF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

void append_utf8(utf8proc_int32_t c, std::string& text) {
  utf8proc_uint8_t bytes[4];
  const auto count = utf8proc_encode_char(c, bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
}

// Collects lower-case words; a punctuation mark or an ideograph is a word of its own.
class Words {
 public:
  void add(utf8proc_int32_t c) {
    if (is_space(c)) {
      end_word();
    } else if (!is_dropped(c)) {
      const bool alone = is_ideograph(c);
      if (alone) {
        end_word();
      }
      add_letters(c);
      if (alone) {
        end_word();
      }
    }
  }

  std::vector<std::string> take() {
    end_word();
    return std::move(words_);
  }

 private:
  // An accented letter is a letter and marks, which are dropped.
  void add_letters(utf8proc_int32_t c) {
    utf8proc_int32_t parts[8];  // canonical decompositions have at most 4
    int boundary = 0;
    const auto count = utf8proc_decompose_char(c, parts, 8, UTF8PROC_DECOMPOSE, &boundary);
    for (utf8proc_ssize_t i = 0; i < std::min<utf8proc_ssize_t>(count, 8); ++i) {
      if (utf8proc_category(parts[i]) == UTF8PROC_CATEGORY_MN) {
        continue;
      }
      const bool alone = is_punctuation(parts[i]);
      if (alone) {
        end_word();
      }
      append_utf8(utf8proc_tolower(parts[i]), word_);
      if (alone) {
        end_word();
      }
    }
  }

  void end_word() {
    if (!word_.empty()) {
      words_.push_back(std::move(word_));
      word_.clear();
    }
  }

  std::string word_;
  std::vector<std::string> words_;
};

std::vector<std::string> words_of(std::string_view text) {
  Words words;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  size_t at = 0;
  while (at < text.size()) {
    utf8proc_int32_t c = kReplacement;
    const auto length =
        utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(text.size() - at), &c);
    words.add(length > 0 ? c : kReplacement);
    at += length > 0 ? static_cast<size_t>(length) : 1;
  }
  return words.take();
}

// Where each character of a word begins, and where the last one ends.
std::vector<size_t> boundaries(const std::string& word) {
  std::vector<size_t> places;
  for (size_t i = 0; i < word.size(); ++i) {
    if ((static_cast<unsigned char>(word[i]) & 0xC0) != 0x80) {
      places.push_back(i);
    }
  }
  places.push_back(word.size());
  return places;
}

}  // namespace

WordPiece::WordPiece(const std::string& vocabulary_path, int64_t max_tokens)
    : max_tokens_(static_cast<size_t>(max_tokens)) {
  TORCH_CHECK(max_tokens >= 2, "WordPiece: expected max_tokens to be at least 2, got ", max_tokens);
  std::ifstream file(vocabulary_path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(vocabulary_path + ": expected a vocabulary, got no readable file");
  }
  std::string line;
  while (std::getline(file, line)) {
    if (line.ends_with('\r')) {
      line.pop_back();
    }
    const auto [place, added] = ids_.emplace(line, static_cast<int64_t>(ids_.size()));
    if (!added) {  // the ids of all that follow would no longer be their lines' numbers
      throw std::runtime_error(
          vocabulary_path + ": expected every piece once, got '" + line + "' on lines " +
          std::to_string(place->second + 1) + " and " + std::to_string(ids_.size() + 1));
    }
  }
  cls_ = special("[CLS]", vocabulary_path);
  sep_ = special("[SEP]", vocabulary_path);
  pad_ = special("[PAD]", vocabulary_path);
  unknown_ = special("[UNK]", vocabulary_path);
}

int64_t WordPiece::special(const std::string& token, const std::string& path) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) {
    throw std::runtime_error(
        path + ": expected a vocabulary with " + token + ", got " + std::to_string(ids_.size()) +
        " other pieces");
  }
  return found->second;
}

void WordPiece::append_pieces(const std::string& word, std::vector<int64_t>& ids) const {
  const std::vector<size_t> places = boundaries(word);
  const size_t before = ids.size();
  const size_t characters = places.size() - 1;
  std::string piece;
  for (size_t begin = 0; begin < characters && characters <= kMaxWordCharacters;) {
    const std::string prefix = begin == 0 ? "" : "##";
    piece.assign(prefix).append(word, places[begin]);
    size_t end = characters;
    auto found = ids_.find(piece);
    while (found == ids_.end() && --end > begin) {
      piece.resize(prefix.size() + places[end] - places[begin]);
      found = ids_.find(piece);
    }
    if (found == ids_.end()) {
      ids.resize(before);
      break;
    }
    ids.push_back(found->second);
    begin = end;
  }
  if (ids.size() == before) {
    ids.push_back(unknown_);
  }
}

std::vector<int64_t> WordPiece::encode(std::string_view text) const {
  std::vector<int64_t> ids = {cls_};
  for (const std::string& word : words_of(text)) {
    if (ids.size() >= max_tokens_) {
      break;
    }
    append_pieces(word, ids);
  }
  ids.resize(std::min(ids.size(), max_tokens_ - 1));
  ids.push_back(sep_);
  return ids;
}

TokenBatch WordPiece::batch(const std::vector<std::vector<int64_t>>& texts) const {
  size_t longest = 0, shortest = texts.empty() ? 0 : texts[0].size();
  for (const auto& ids : texts) {
    longest = std::max(longest, ids.size());
    shortest = std::min(shortest, ids.size());
  }
  const auto rows = static_cast<int64_t>(texts.size());
  TokenBatch result;
  result.ids = torch::full({rows, static_cast<int64_t>(longest)}, pad_, torch::kLong);
  auto* to = result.ids.data_ptr<int64_t>();
  for (const auto& ids : texts) {
    std::copy(ids.begin(), ids.end(), to);
    to += longest;
  }
  if (shortest < longest) {
    result.mask = torch::zeros(result.ids.sizes(), torch::kBool);
    for (int64_t row = 0; row < rows; ++row) {
      result.mask[row].slice(0, 0, static_cast<int64_t>(texts[static_cast<size_t>(row)].size())) =
          true;
    }
  }
  return result;
}

}  // namespace minilm
