// BERT's uncased WordPiece tokenizer: words in lower case and without accents, each cut into the longest
// pieces that the vocabulary has.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace minilm {

// ids: int64 [batch, tokens]. mask: bool of the same shape, false where a text is shorter than the
// longest; undefined where all have the same length.
struct TokenBatch {
  torch::Tensor ids;
  torch::Tensor mask;
};

class WordPiece {
 public:
  // The vocabulary has one piece a line; its number is its id. Pieces inside a word begin with ##.
  // At most `max_tokens` are kept of a text, [CLS] and [SEP] included.
  explicit WordPiece(const std::string& vocabulary_path, int64_t max_tokens = 256);

  // [CLS] pieces [SEP]. Text such as "[SEP]" is punctuation and a word, never the token.
  std::vector<int64_t> encode(std::string_view text) const;

  // Shorter texts are filled up with [PAD].
  TokenBatch batch(const std::vector<std::vector<int64_t>>& texts) const;

 private:
  struct Hash {
    using is_transparent = void;  // looks up a part of a string without copying it
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  int64_t special(const std::string& token, const std::string& path) const;
  void append_pieces(const std::string& word, std::vector<int64_t>& ids) const;

  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> ids_;
  size_t max_tokens_;
  int64_t cls_, sep_, pad_, unknown_;
};

}  // namespace minilm
