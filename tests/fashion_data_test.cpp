// examples/fashion: IDX files and batches of images.
#include <torch/torch.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "../examples/fashion/data.h"
#include "../examples/fashion/idx.h"
#include "striped_images.h"
#include "temporary_directory.h"

namespace {

using Catch::Matchers::ContainsSubstring;
using te_int8_tests::striped_images;
using te_int8_tests::TemporaryDirectory;

std::string idx_header(char type, const std::vector<int64_t>& sizes) {
  std::string bytes = {0, 0, type, static_cast<char>(sizes.size())};
  for (const int64_t size : sizes) {
    for (const int shift : {24, 16, 8, 0}) {
      bytes += static_cast<char>(size >> shift & 0xff);
    }
  }
  return bytes;
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

TEST_CASE("an IDX file's bytes come in the file's sizes", "[examples]") {
  const TemporaryDirectory directory;
  write_bytes(directory / "images", idx_header(8, {2, 1, 3}) + "\x01\x02\x03\xfd\xfe\xff");
  const auto expected = torch::tensor({1, 2, 3, 253, 254, 255}).to(torch::kUInt8).view({2, 1, 3});
  const auto images = fashion::read_idx(directory / "images", 3);
  CHECK(images.scalar_type() == torch::kUInt8);
  CHECK(torch::equal(images, expected));
  write_bytes(directory / "many", idx_header(8, {300}) + std::string(300, 'a'));
  CHECK(torch::equal(
      fashion::read_idx(directory / "many", 1), torch::full({300}, 'a', torch::kUInt8)));
}

TEST_CASE("an IDX file that is not as expected is an error that says how", "[examples]") {
  struct Case {
    std::string bytes, error;
  };
  const std::string zeros("\0\0", 2);
  const auto [bytes, error] = GENERATE_COPY(
      Case{"", "expected an IDX file, got 0 bytes"}, Case{"\x1f\x8b\x08", "packed by gzip"},
      Case{"PK\x03\x04", "begins with two bytes of zero, got 0x50 and 0x4b"},
      Case{zeros + "\x0d\x02", "expected unsigned bytes, type 0x08, got type 0x0d"},
      Case{zeros + "\x08\x03", "expected 2 dimensions, got 3"},
      Case{zeros + "\x08\x02", "expected a header of 12 bytes, got 4 bytes"},
      Case{idx_header(8, {2, 0}), "expected sizes above 0, got 2 x 0"},
      Case{
          idx_header(8, {2, 3}) + "12345",
          "expected 18 bytes for the sizes 2 x 3, got 17 bytes: the file is truncated"},
      Case{idx_header(8, {2, 3}) + "1234567", "got 19 bytes: something follows the values"},
      Case{idx_header(8, {0xffffffff, 0xffffffff}) + "1", "4294967295 x 4294967295, got 13 bytes"});
  const TemporaryDirectory directory;
  write_bytes(directory / "file", bytes);
  CAPTURE(error);
  CHECK_THROWS_WITH(
      fashion::read_idx(directory / "file", 2),
      ContainsSubstring(error) && ContainsSubstring(directory / "file"));
  CHECK_THROWS_WITH(fashion::read_idx(directory / "none", 2), ContainsSubstring("No such file"));
}

TEST_CASE("images and labels have to fit each other", "[examples]") {
  const TemporaryDirectory directory;
  const auto write = [&](int64_t rows, const std::string& labels) {
    write_bytes(
        directory / "t10k-images-idx3-ubyte",
        idx_header(8, {2, rows, 28}) + std::string(static_cast<size_t>(2 * rows * 28), 'x'));
    write_bytes(
        directory / "t10k-labels-idx1-ubyte",
        idx_header(8, {static_cast<int64_t>(labels.size())}) + labels);
  };
  const auto read = [&](int64_t count = -1) {
    return fashion::read_dataset(directory / "", "t10k", torch::kCPU, count);
  };
  write(28, "\x07\x02");
  CHECK(torch::equal(read().labels, torch::tensor({7, 2})));
  CHECK(read().images.sizes() == torch::IntArrayRef({2, 28, 28}));
  CHECK(read(1).size() == 1);
  CHECK_THROWS_WITH(read(3), ContainsSubstring("expected 3 images or more, got 2"));
  write(27, "\x07\x02");
  CHECK_THROWS_WITH(read(), ContainsSubstring("expected images of 28 x 28, got 27 x 28"));
  write(28, "\x07");
  CHECK_THROWS_WITH(read(), ContainsSubstring("expected 2 labels, as there are images, got 1"));
  write(28, "\x07\x0a");
  CHECK_THROWS_WITH(read(), ContainsSubstring("expected labels from 0 to 9, got 10"));
}

TEST_CASE("an epoch has each image once, moved and perhaps mirrored", "[examples]") {
  const fashion::Dataset data = striped_images(30);
  const fashion::AugmentedEpoch epoch(data, 1, 2, 7);
  REQUIRE(epoch.size() == 4);
  const auto same = [&](uint64_t seed, int64_t number) {
    const fashion::AugmentedEpoch other(data, seed, number, 7);
    return torch::equal(other[3].images, epoch[3].images);
  };
  torch::rand({10});  // LibTorch's generator plays no part
  CHECK(same(1, 2));
  CHECK_FALSE(same(1, 3));
  CHECK_FALSE(same(2, 2));

  const auto padded = torch::constant_pad_nd(data.images, {2, 2, 2, 2});
  std::vector<int64_t> seen(30);
  bool moved = false, mirrored = false;
  for (int64_t i = 0; i < epoch.size(); ++i) {
    const auto [images, labels] = epoch[i];
    REQUIRE(images.sizes() == torch::IntArrayRef({7, 1, 28, 28}));
    const auto bytes = (images.squeeze(1) * (0.353 * 255) + 0.286 * 255).round().to(torch::kUInt8);
    for (int64_t row = 0; row < 7; ++row) {
      for (int64_t place = 0; place < 25; ++place) {
        const auto crops =
            padded.slice(1, place / 5, place / 5 + 28).slice(2, place % 5, place % 5 + 28);
        for (const bool flip : {false, true}) {
          const auto equal = ((flip ? crops.flip(2) : crops) == bytes[row]).flatten(1).all(1);
          if (equal.any().item<bool>()) {
            const auto source = equal.to(torch::kLong).argmax().item<int64_t>();
            ++seen[static_cast<size_t>(source)];
            CHECK(labels[row].item<int64_t>() == source % 10);
            moved = moved || place != 12;
            mirrored = mirrored || flip;
          }
        }
      }
    }
  }
  int64_t once = 0;
  for (const int64_t times : seen) {
    CHECK(times <= 1);
    once += times;
  }
  CHECK(once == 28);  // 30 without the rest of a batch
  CHECK((moved && mirrored));
}

TEST_CASE("test batches are all images in order", "[examples]") {
  const fashion::Dataset data = striped_images(25);
  const auto batches = fashion::batches(data, 10);
  REQUIRE(batches.size() == 3);
  CHECK(batches[2].images.sizes() == torch::IntArrayRef({5, 1, 28, 28}));
  CHECK(torch::equal(batches[2].labels, data.labels.slice(0, 20)));
  const auto pixels =
      torch::cat({batches[0].images, batches[1].images, batches[2].images}).squeeze(1);
  CHECK(torch::allclose(
      pixels * (0.353 * 255) + 0.286 * 255, data.images.to(torch::kFloat), 0, 1e-3));
}
