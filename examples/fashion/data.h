// Fashion-MNIST: 60,000 images to train on and 10,000 to test with, 28 x 28 bytes of grey, in 10
// classes.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

namespace fashion {

inline constexpr int64_t kSide = 28;
inline constexpr int64_t kClasses = 10;

struct Dataset {
  torch::Tensor images;  // uint8 [N, 28, 28]
  torch::Tensor labels;  // int64 [N]

  int64_t size() const { return labels.size(0); }
};

// What a model takes.
struct Batch {
  torch::Tensor images;  // float [N, 1, 28, 28], of mean 0 and deviation 1
  torch::Tensor labels;  // int64 [N]
};

// Reads NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte, NAME being "train" or "t10k", onto the
// device: the first `count` images, or all of them.
Dataset read_dataset(
    const std::string& folder, const std::string& name, torch::Device device, int64_t count = -1);

// The images as they are and in order, at most `size` a batch.
std::vector<Batch> batches(const Dataset& data, int64_t size);

// One pass over a training set in random order. Each image is moved by up to two pixels each way,
// and every other one is mirrored. All of it depends on the seed and the epoch alone, so two runs
// see the same batches.
class AugmentedEpoch {
 public:
  AugmentedEpoch(const Dataset& data, uint64_t seed, int64_t epoch, int64_t batch);

  // Whole batches: what is left over is other images in each epoch.
  int64_t size() const { return data_.size() / batch_; }
  Batch operator[](int64_t index) const;

 private:
  const Dataset& data_;
  int64_t batch_;
  torch::Tensor order_;     // int64 [N]: which image; all of these are on the device
  torch::Tensor top_;       // int64 [N]: the first row of the padded image, 0 to 4
  torch::Tensor left_;      // the same of columns
  torch::Tensor mirrored_;  // bool [N]
};

}  // namespace fashion
