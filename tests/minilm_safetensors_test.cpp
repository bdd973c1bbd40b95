// The reader of safetensors in examples/minilm: every dtype, every way in which a file can be wrong, and
// mutations of a good file.
#include <torch/torch.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../examples/minilm/safetensors.h"
#include "temporary_directory.h"

using Catch::Matchers::ContainsSubstring;

namespace {

std::string bytes_of(uint64_t value) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &value, 8);
  return bytes;
}

std::string file_of(const std::string& header, const std::string& data) {
  return bytes_of(header.size()) + header + data;
}

minilm::NamedTensors load(const std::string& file) {
  std::istringstream stream(file);
  return minilm::read_safetensors(stream, file.size(), "file");
}

std::string entry(
    const std::string& name, const std::string& dtype, const std::string& shape,
    const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + '}';
}

// One odd byte first, so that nothing after it is aligned.
std::string good_file() {
  const std::string header =
      '{' + entry("byte", "U8", "[1]", "[0,1]") + R"(,"__metadata__":{"format":"pt"},)" +
      entry("matrix", "F32", "[2,3]", "[1,25]") + ',' + entry("none", "F16", "[0,4]", "[25,25]") +
      ',' + entry("flags", "BOOL", "[3]", "[33,36]") + ',' +
      entry("scalar", "I64", "[]", "[25,33]") + "}  ";
  std::string data(1, '\7');
  const float matrix[] = {1, 2, 3, 4, 5, 6};
  data.append(reinterpret_cast<const char*>(matrix), sizeof matrix);
  return file_of(header, data + bytes_of(42) + std::string("\1\0\1", 3));
}

// A wrong file of one tensor "w" with these fields and 8 bytes of data.
std::string wrong(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return file_of('{' + entry("w", dtype, shape, offsets) + '}', std::string(8, '\0'));
}

// Reads every byte of what was read, so that a sanitizer sees what a tensor claims to hold.
bool is_valid(const minilm::NamedTensors& tensors, size_t file_bytes) {
  size_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    bytes += tensor.nbytes();
    if (!tensor.is_contiguous() || tensor.storage().nbytes() < tensor.nbytes()) {
      return false;
    }
    const std::string copy(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
  }
  return bytes <= file_bytes;
}

// Another number, or something that is none, in the place of a number of the header.
void edit_number(std::string& file, std::mt19937& random) {
  static const std::vector<std::string> numbers = {
      "-1",
      "0",
      "1",
      "7",
      "26",
      "4294967296",
      "4611686018427387904",
      "9223372036854775807",
      "9223372036854775808",
      "18446744073709551615",
      "18446744073709551616",
      "1e3",
      "1e400",
      "-0",
      "0.5",
      "null",
      "\"1\"",
      "[]",
      "[[[[",
      "{}",
      "true"};
  std::vector<size_t> places;
  for (size_t i = 8; i + 36 < file.size(); ++i) {
    if (std::string("[,").find(file[i]) != std::string::npos && file[i + 1] >= '0' &&
        file[i + 1] <= '9') {
      places.push_back(i + 1);
    }
  }
  if (places.empty()) {
    return;
  }
  const size_t place = places[random() % places.size()];
  const size_t length = file.find_first_not_of("0123456789", place) - place;
  file.replace(place, length, numbers[random() % numbers.size()]);
  // Most often the header's length follows, so that the reader gets as far as the number.
  uint64_t header = 0;
  const size_t end = file.find("}  ", place);
  if (random() % 8 != 0 && end != std::string::npos) {
    header = end + 3 - 8;
    std::memcpy(file.data(), &header, 8);
  }
}

void mutate(std::string& file, std::mt19937& random) {
  switch (random() % 6) {
    case 0: file[random() % file.size()] ^= static_cast<char>(1 << random() % 8); break;
    case 1: file[random() % file.size()] = static_cast<char>(random()); break;
    case 2: file.resize(1 + random() % file.size()); break;
    case 3: {
      const uint64_t lengths[] = {
          random() % 600, random(), uint64_t{random()} << 32, 100'000'000,
          std::numeric_limits<uint64_t>::max()};
      std::string length = bytes_of(lengths[random() % 5]);
      file.replace(0, std::min<size_t>(8, file.size()), length);
      break;
    }
    case 4: {  // a part of the file twice, or once less
      const size_t from = random() % file.size();
      const std::string part = file.substr(from, random() % 40);
      random() % 2 == 0 ? file.insert(random() % file.size(), part) : file.erase(from, part.size());
      file.push_back('\0');
      break;
    }
    default: edit_number(file, random);
  }
}

}  // namespace

TEST_CASE("safetensors: every dtype is read, also from odd offsets", "[examples][minilm]") {
  const auto [name, dtype] = GENERATE(table<std::string, torch::Dtype>(
      {{"F64", torch::kFloat64},
       {"F32", torch::kFloat32},
       {"F16", torch::kFloat16},
       {"BF16", torch::kBFloat16},
       {"I64", torch::kInt64},
       {"I32", torch::kInt32},
       {"I16", torch::kInt16},
       {"I8", torch::kInt8},
       {"U8", torch::kUInt8},
       {"BOOL", torch::kBool}}));
  INFO(name);
  const torch::Tensor values = torch::tensor({0, 1, 2, 3, 100, 0}).to(dtype).reshape({2, 3});
  const size_t size = values.nbytes();
  const std::string end = std::to_string(1 + size);
  const std::string header = '{' + entry("w", name, "[2,3]", "[1," + end + "]") + ',' +
                             entry("odd", "U8", "[1]", "[0,1]") + '}';
  const te_int8_tests::TemporaryDirectory directory;
  const std::string path = directory / "model.safetensors";
  std::ofstream(path, std::ios::binary)
      << file_of(header, '\5' + std::string(static_cast<const char*>(values.data_ptr()), size));
  const minilm::NamedTensors tensors = minilm::load_safetensors(path);
  REQUIRE(tensors.size() == 2);
  CHECK(tensors.at("odd").item<int>() == 5);
  CHECK(tensors.at("w").scalar_type() == dtype);
  CHECK(torch::equal(tensors.at("w"), values));
}

TEST_CASE("safetensors: metadata, empty tensors and scalars", "[examples][minilm]") {
  const minilm::NamedTensors tensors = load(good_file());
  REQUIRE(tensors.size() == 5);
  CHECK(torch::equal(tensors.at("matrix"), torch::tensor({{1.f, 2.f, 3.f}, {4.f, 5.f, 6.f}})));
  CHECK(tensors.at("none").sizes() == std::vector<int64_t>{0, 4});
  CHECK(tensors.at("scalar").dim() == 0);
  CHECK(tensors.at("scalar").item<int64_t>() == 42);
  CHECK(torch::equal(tensors.at("flags"), torch::tensor({true, false, true})));
  CHECK(load(file_of("{}", "")).empty());
}

TEST_CASE("safetensors: what is wrong with a file is said", "[examples][minilm]") {
  const std::string w = entry("w", "F32", "[2]", "[0,8]");
  const std::string eight(8, '\0');
  const auto [file, message] = GENERATE_COPY(table<std::string, std::string>({
      {"", "file: expected at least 8 bytes, got 0"},
      {bytes_of(100'000'001), "a header of at most 100000000 bytes, got 100000001"},
      {bytes_of(3) + "{}", "expected a header within the file's 10 bytes, got 3"},
      {bytes_of(0), "begins with '{'"},
      {file_of(" {}", ""), "begins with '{'"},
      {file_of("{", ""), "expected a header in JSON"},
      {file_of("{}x", ""), "expected a header in JSON"},
      {file_of("{\"\xFF\":1}", ""), "expected a header in JSON"},
      {file_of(R"({"w":1e400})", ""), "expected a header in JSON"},
      {file_of('{' + w + ',' + w + '}', eight), "tensor 'w': expected each name once"},
      {file_of(R"({"w":{"dtype":"F32","dtype":"F32"}})", ""), "'dtype': expected each name once"},
      {file_of(R"({"w":{"shape":[[1]]}})", ""), "at most 3 levels"},
      {file_of('{' + std::string(100000, '['), ""), "JSON"},
      {file_of(R"({"w":)" + std::string(100000, '['), ""), "at most 3 levels"},
      {file_of(R"({"w":[]})", ""), "tensor 'w': expected dtype, shape and data_offsets, got []"},
      {file_of(R"({"w":{"dtype":"F32","shape":[1]}})", ""),
       "expected dtype, shape and data_offsets"},
      {file_of(R"({"__metadata__":{"a":1}})", ""), "__metadata__ to be an object of strings"},
      {wrong("F31", "[2]", "[0,8]"),
       "expected a dtype of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL, got \"F31\""},
      {wrong("F32", "2", "[0,8]"), "expected a shape of at most 64 sizes, got 2"},
      {wrong("F32", "[-2]", "[0,8]"), "2^63 - 1 in its shape, got -2"},
      {wrong("F32", "[2.0]", "[0,8]"), "in its shape, got 2.0"},
      {wrong("F32", "[9223372036854775808]", "[0,8]"), "in its shape, got 9223372036854775808"},
      {wrong("F32", "[4294967296,4294967296]", "[0,8]"), "less than 2^63 bytes"},
      {wrong("F32", "[0,4294967296,4294967296]", "[0,0]"), "less than 2^63 bytes"},
      {wrong("F32", "[3]", "[0,8]"),
       "tensor 'w': expected 12 bytes for shape [3] of dtype \"F32\", got 8"},
      {wrong("F32", "[2]", "[8]"), "data_offsets of two numbers, got [8]"},
      {wrong("F32", "[2]", "[-8,0]"), "in its data_offsets, got -8"},
      {wrong("F32", "[2]", "[8,0]"), "data_offsets in order within 8 bytes of data, got [8,0]"},
      {wrong("F32", "[2]", "[4,12]"), "within 8 bytes of data, got [4,12]"},
      {wrong("F32", "[1]", "[4,8]"), "expected its data to begin at byte 0"},
      {wrong("F32", "[1]", "[0,4]"), "expected tensors to cover 8 bytes of data, got 4"},
      {file_of('{' + w + ',' + entry("v", "F32", "[1]", "[4,8]") + '}', eight),
       "tensor 'v': expected its data to begin at byte 8"},
      {file_of('{' + entry("w", "BOOL", "[1]", "[0,1]") + '}', "\2"), "BOOL bytes of 0 or 1"},
  }));
  CAPTURE(message);
  CHECK_THROWS_WITH(load(file), ContainsSubstring(message));
}

TEST_CASE("safetensors: what is no file is refused", "[examples][minilm]") {
  const te_int8_tests::TemporaryDirectory directory;
  CHECK_THROWS_WITH(
      minilm::load_safetensors(directory / "none"), ContainsSubstring("none: expected a file"));
  CHECK_THROWS_WITH(minilm::load_safetensors(directory / ""), ContainsSubstring("expected a file"));
  CHECK_THROWS_WITH(minilm::load_safetensors("/dev/zero"), ContainsSubstring("expected a file"));
}

TEST_CASE(
    "safetensors: mutations of a file are read or refused, nothing else", "[examples][minilm]") {
  std::mt19937 random(1);
  const std::string good = good_file();
  int accepted = 0;
  for (int i = 0; i < 40'000; ++i) {
    std::string file = good;
    for (uint32_t times = 1 + random() % 3; times > 0; --times) {
      mutate(file, random);
    }
    try {
      const bool valid = is_valid(load(file), file.size());
      if (!valid) {
        FAIL("mutation " << i << " gave tensors that are not whole");
      }
      ++accepted;
    } catch (const std::runtime_error& error) {
      if (!std::string(error.what()).starts_with("file: ")) {
        FAIL("mutation " << i << ": " << error.what());
      }
    }
  }
  INFO("accepted " << accepted);
  CHECK(accepted > 100);  // flipped data bits are no error, so some have to pass
  CHECK(accepted < 20'000);
}
