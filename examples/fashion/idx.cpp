#include "idx.h"

#include <cstring>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "../common/read_file.h"
#include "../common/text.h"

namespace fashion {

namespace {

constexpr size_t kMagicBytes = 4;  // two zeros, the type, the number of dimensions
constexpr size_t kSizeBytes = 4;   // of each size, the high byte first
constexpr unsigned kUnsignedByte = 0x08;

unsigned byte_at(const std::string& bytes, size_t at) {
  return static_cast<unsigned char>(bytes[at]);
}

uint32_t size_at(const std::string& bytes, size_t at) {
  return byte_at(bytes, at) << 24 | byte_at(bytes, at + 1) << 16 | byte_at(bytes, at + 2) << 8 |
         byte_at(bytes, at + 3);
}

std::string hexadecimal(unsigned byte) {
  std::ostringstream out;
  out << "0x" << std::hex << std::setw(2) << std::setfill('0') << byte;
  return out.str();
}

}  // namespace

torch::Tensor read_idx(const std::string& path, int64_t dimensions) {
  const std::string bytes = examples::read_file(path);
  const auto require = [&](bool valid, const std::string& expected, const std::string& got) {
    if (!valid) {
      throw std::runtime_error(path + ": expected " + expected + ", got " + got);
    }
  };
  const std::string length = std::to_string(bytes.size()) + " bytes";
  require(!bytes.starts_with("\x1f\x8b"), "an IDX file", "one packed by gzip: unpack it by gunzip");
  require(bytes.size() >= kMagicBytes, "an IDX file", length);
  require(
      byte_at(bytes, 0) == 0 && byte_at(bytes, 1) == 0,
      "an IDX file, which begins with two bytes of zero",
      hexadecimal(byte_at(bytes, 0)) + " and " + hexadecimal(byte_at(bytes, 1)));
  require(
      byte_at(bytes, 2) == kUnsignedByte, "unsigned bytes, type " + hexadecimal(kUnsignedByte),
      "type " + hexadecimal(byte_at(bytes, 2)));
  require(
      byte_at(bytes, 3) == dimensions, std::to_string(dimensions) + " dimensions",
      std::to_string(byte_at(bytes, 3)));
  const size_t header = kMagicBytes + kSizeBytes * static_cast<size_t>(dimensions);
  require(bytes.size() >= header, "a header of " + std::to_string(header) + " bytes", length);

  std::vector<int64_t> sizes;
  std::string shown;
  double values = 1;  // a product of any three sizes, exact where a file could be as long
  for (size_t at = kMagicBytes; at < header; at += kSizeBytes) {
    sizes.push_back(size_at(bytes, at));
    shown += (shown.empty() ? "" : " x ") + std::to_string(sizes.back());
    values *= static_cast<double>(sizes.back());
  }
  require(values > 0, "sizes above 0", shown);
  const double expected = static_cast<double>(header) + values;
  const auto got = static_cast<double>(bytes.size());
  require(
      got == expected, examples::fixed(expected, 0) + " bytes for the sizes " + shown,
      length + (got < expected ? ": the file is truncated" : ": something follows the values"));

  torch::Tensor tensor = torch::empty(sizes, torch::kUInt8);
  std::memcpy(tensor.data_ptr<uint8_t>(), bytes.data() + header, bytes.size() - header);
  return tensor;
}

}  // namespace fashion
