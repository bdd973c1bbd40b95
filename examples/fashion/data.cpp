#include "data.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <random>
#include <stdexcept>

#include "idx.h"

namespace fashion {

namespace {

constexpr int64_t kPadding = 2;
constexpr double kMean = 0.286 * 255;  // of the training images
constexpr double kDeviation = 0.353 * 255;

torch::Tensor normalized(const torch::Tensor& bytes) {
  return bytes.to(torch::kFloat).sub_(kMean).div_(kDeviation).unsqueeze(1);
}

}  // namespace

Dataset read_dataset(
    const std::string& folder, const std::string& name, torch::Device device, int64_t count) {
  const std::string images_path = folder + "/" + name + "-images-idx3-ubyte";
  const std::string labels_path = folder + "/" + name + "-labels-idx1-ubyte";
  const auto require = [](bool valid, const std::string& message) {
    if (!valid) {
      throw std::runtime_error(message);
    }
  };
  const torch::Tensor images = read_idx(images_path, 3);
  const torch::Tensor labels = read_idx(labels_path, 1);
  const auto number = [](int64_t value) { return std::to_string(value); };
  require(
      images.size(1) == kSide && images.size(2) == kSide,
      images_path + ": expected images of 28 x 28, got " + number(images.size(1)) + " x " +
          number(images.size(2)));
  require(
      labels.size(0) == images.size(0), labels_path + ": expected " + number(images.size(0)) +
                                            " labels, as there are images, got " +
                                            number(labels.size(0)));
  const auto highest = labels.max().item<int64_t>();
  require(
      highest < kClasses, labels_path + ": expected labels from 0 to 9, got " + number(highest));
  require(
      count <= images.size(0), images_path + ": expected " + number(count) +
                                   " images or more, got " + number(images.size(0)));
  const int64_t end = count < 0 ? images.size(0) : count;
  return {images.slice(0, 0, end).to(device), labels.slice(0, 0, end).to(device, torch::kLong)};
}

std::vector<Batch> batches(const Dataset& data, int64_t size) {
  std::vector<Batch> result;
  for (int64_t begin = 0; begin < data.size(); begin += size) {
    const int64_t end = std::min(begin + size, data.size());
    result.push_back(
        {normalized(data.images.slice(0, begin, end)), data.labels.slice(0, begin, end)});
  }
  return result;
}

AugmentedEpoch::AugmentedEpoch(const Dataset& data, uint64_t seed, int64_t epoch, int64_t batch)
    : data_(data), batch_(batch) {
  std::seed_seq sequence = {seed, static_cast<uint64_t>(epoch)};
  at::Generator generator = at::detail::createCPUGenerator(std::mt19937_64(sequence)());
  const int64_t count = data.size();
  const auto device = data.images.device();
  const auto below = [&](int64_t limit) {
    return torch::randint(0, limit, {count}, generator, torch::kLong).to(device);
  };
  order_ = torch::randperm(count, generator, torch::kLong).to(device);
  top_ = below(2 * kPadding + 1);
  left_ = below(2 * kPadding + 1);
  mirrored_ = below(2).to(torch::kBool);
}

Batch AugmentedEpoch::operator[](int64_t index) const {
  const auto mine = [&](const torch::Tensor& values) {
    return values.slice(0, index * batch_, (index + 1) * batch_);
  };
  const torch::Tensor which = mine(order_);
  const torch::Tensor padded = torch::constant_pad_nd(
      data_.images.index_select(0, which), {kPadding, kPadding, kPadding, kPadding});
  const torch::Tensor offsets = torch::arange(kSide, which.options());
  const torch::Tensor image = torch::arange(batch_, which.options()).view({-1, 1, 1});
  const torch::Tensor rows = mine(top_).view({-1, 1, 1}) + offsets.view({1, -1, 1});
  const torch::Tensor columns =
      mine(left_).view({-1, 1, 1}) +
      torch::where(mine(mirrored_).view({-1, 1, 1}), kSide - 1 - offsets, offsets);
  return {normalized(padded.index({image, rows, columns})), data_.labels.index_select(0, which)};
}

}  // namespace fashion
