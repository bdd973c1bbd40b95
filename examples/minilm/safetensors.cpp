#include "safetensors.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

namespace minilm {

namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format's numbers are little-endian");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDimensions = 64;  // what LibTorch's own operations take
constexpr size_t kMaxDepth = 3;        // the header, a tensor's entry, its shape

// What is wrong with which file.
class Complaint {
 public:
  explicit Complaint(std::string file) : file_(std::move(file)) {}

  [[noreturn]] void raise(const std::string& message) const {
    throw std::runtime_error(file_ + ": " + message);
  }
  [[noreturn]] void raise(const std::string& tensor, const std::string& message) const {
    const std::string shown = tensor.size() <= 200 ? tensor : tensor.substr(0, 200) + "...";
    raise("tensor '" + shown + "': " + message);
  }

 private:
  std::string file_;
};

struct Entry {
  std::string name;
  torch::Dtype dtype;
  std::vector<int64_t> shape;
  uint64_t begin;
  uint64_t end;
};

// A value as an error shows it: a hostile file may hold a long one.
std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

json parse_header(const std::string& text, const Complaint& complaint) {
  // The parser itself would keep the last of two equal names. It reports each key, so they are seen here.
  std::vector<std::set<std::string>> keys;
  size_t depth = 0;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
      if (++depth > kMaxDepth) {
        complaint.raise("expected a header of at most 3 levels, got more");
      }
      keys.resize(depth);
      keys.back().clear();
    } else if (
        event == json::parse_event_t::object_end || event == json::parse_event_t::array_end) {
      --depth;
    } else if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys[depth - 1].insert(key).second) {
        complaint.raise(key, "expected each name once in the header, got it twice");
      }
    }
    return true;
  };
  try {
    json header = json::parse(text, watch);
    if (!header.is_object()) {
      complaint.raise("expected the header to be a JSON object, got " + shown(header));
    }
    return header;
  } catch (const json::exception& error) {
    complaint.raise(std::string("expected a header in JSON, got ") + error.what());
  }
}

torch::Dtype dtype_of(const std::string& tensor, const json& value, const Complaint& complaint) {
  static const std::map<std::string, torch::Dtype> known = {
      {"F64", torch::kFloat64},   {"F32", torch::kFloat32}, {"F16", torch::kFloat16},
      {"BF16", torch::kBFloat16}, {"I64", torch::kInt64},   {"I32", torch::kInt32},
      {"I16", torch::kInt16},     {"I8", torch::kInt8},     {"U8", torch::kUInt8},
      {"BOOL", torch::kBool}};
  if (value.is_string()) {
    const auto found = known.find(value.get_ref<const std::string&>());
    if (found != known.end()) {
      return found->second;
    }
  }
  complaint.raise(
      tensor,
      "expected a dtype of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL, got " + shown(value));
}

// A whole number from 0 on that an int64 holds.
uint64_t whole_number(
    const std::string& tensor, const std::string& what, const json& value,
    const Complaint& complaint) {
  constexpr auto kLargest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value.is_number_unsigned() || value.get<uint64_t>() > kLargest) {
    complaint.raise(
        tensor,
        "expected a whole number from 0 to 2^63 - 1 in its " + what + ", got " + shown(value));
  }
  return value.get<uint64_t>();
}

// The bytes that the shape takes. Sizes of 0 count as 1 for the overflow: strides are products too.
uint64_t bytes_of(const Entry& entry, const Complaint& complaint) {
  constexpr auto kLargest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  uint64_t product = torch::elementSize(entry.dtype);
  bool empty = false;
  for (const int64_t size : entry.shape) {
    const auto factor = static_cast<uint64_t>(std::max<int64_t>(size, 1));
    if (product > kLargest / factor) {
      complaint.raise(entry.name, "expected a shape of less than 2^63 bytes, got more");
    }
    product *= factor;
    empty = empty || size == 0;
  }
  return empty ? 0 : product;
}

Entry entry_of(
    const std::string& name, const json& value, uint64_t data_bytes, const Complaint& complaint) {
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    complaint.raise(name, "expected dtype, shape and data_offsets, got " + shown(value));
  }
  const json& shape = value["shape"];
  const json& offsets = value["data_offsets"];
  if (!shape.is_array() || shape.size() > kMaxDimensions) {
    complaint.raise(name, "expected a shape of at most 64 sizes, got " + shown(shape));
  }
  if (!offsets.is_array() || offsets.size() != 2) {
    complaint.raise(name, "expected data_offsets of two numbers, got " + shown(offsets));
  }
  Entry entry = {
      name,
      dtype_of(name, value["dtype"], complaint),
      {},
      whole_number(name, "data_offsets", offsets[0], complaint),
      whole_number(name, "data_offsets", offsets[1], complaint)};
  for (const json& size : shape) {
    entry.shape.push_back(static_cast<int64_t>(whole_number(name, "shape", size, complaint)));
  }
  if (entry.begin > entry.end || entry.end > data_bytes) {
    complaint.raise(
        name, "expected data_offsets in order within " + std::to_string(data_bytes) +
                  " bytes of data, got " + shown(offsets));
  }
  const uint64_t expected = bytes_of(entry, complaint);
  if (entry.end - entry.begin != expected) {
    complaint.raise(
        name, "expected " + std::to_string(expected) + " bytes for shape " + shown(shape) +
                  " of dtype " + shown(value["dtype"]) + ", got " +
                  std::to_string(entry.end - entry.begin));
  }
  return entry;
}

void check_metadata(const json& value, const Complaint& complaint) {
  const bool strings =
      value.is_object() &&
      std::all_of(value.begin(), value.end(), [](const json& item) { return item.is_string(); });
  if (!strings) {
    complaint.raise("expected __metadata__ to be an object of strings, got " + shown(value));
  }
}

// The entries in the order of their data, which they have to cover without a gap.
std::vector<Entry> entries_of(const json& header, uint64_t data_bytes, const Complaint& complaint) {
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      check_metadata(value, complaint);
    } else {
      entries.push_back(entry_of(name, value, data_bytes, complaint));
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      complaint.raise(
          entry.name, "expected its data to begin at byte " + std::to_string(covered) +
                          ", where the data before it ends, got " + std::to_string(entry.begin));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    complaint.raise(
        "expected tensors to cover " + std::to_string(data_bytes) + " bytes of data, got " +
        std::to_string(covered));
  }
  return entries;
}

torch::Tensor read_tensor(std::istream& stream, const Entry& entry, const Complaint& complaint) {
  const bool is_bool = entry.dtype == torch::kBool;
  torch::Tensor tensor = torch::empty(entry.shape, is_bool ? torch::kUInt8 : entry.dtype);
  const auto bytes = static_cast<std::streamsize>(entry.end - entry.begin);
  if (bytes > 0 && !stream.read(static_cast<char*>(tensor.data_ptr()), bytes)) {
    complaint.raise(
        entry.name,
        "expected " + std::to_string(bytes) + " bytes, got " + std::to_string(stream.gcount()));
  }
  if (!is_bool) {
    return tensor;
  }
  if (bytes > 0 && tensor.max().item<uint8_t>() > 1) {
    complaint.raise(entry.name, "expected BOOL bytes of 0 or 1, got another value");
  }
  return tensor.view(torch::kBool);
}

}  // namespace

NamedTensors read_safetensors(std::istream& stream, uint64_t size, const std::string& name) {
  const Complaint complaint(name);
  const auto expect = [&](bool condition, const std::string& expected, uint64_t got) {
    if (!condition) {
      complaint.raise("expected " + expected + ", got " + std::to_string(got));
    }
  };
  expect(size >= kLengthBytes, "at least 8 bytes", size);
  uint64_t length = 0;
  if (!stream.read(reinterpret_cast<char*>(&length), kLengthBytes)) {
    complaint.raise("expected 8 bytes, got fewer");
  }
  expect(length <= kMaxHeaderBytes, "a header of at most 100000000 bytes", length);
  const uint64_t rest = size - kLengthBytes;
  expect(length <= rest, "a header within the file's " + std::to_string(size) + " bytes", length);
  std::string text(length, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(length))) {
    complaint.raise("expected a header of " + std::to_string(length) + " bytes, got fewer");
  }
  if (text.empty() || text[0] != '{') {
    complaint.raise("expected a header that begins with '{', got another byte or none");
  }
  NamedTensors tensors;
  for (const Entry& entry : entries_of(parse_header(text, complaint), rest - length, complaint)) {
    tensors.emplace(entry.name, read_tensor(stream, entry, complaint));
  }
  return tensors;
}

NamedTensors load_safetensors(const std::string& path) {
  const Complaint complaint(path);
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    complaint.raise("expected a file, got " + (error ? error.message() : "something else"));
  }
  const uint64_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    complaint.raise("expected a readable file, got one that cannot be opened");
  }
  return read_safetensors(file, size, path);
}

}  // namespace minilm
