#include "resnet.h"

#include "data.h"

namespace fashion {

namespace nn = torch::nn;

namespace {

constexpr int64_t kStages = 3;

// A BatchNorm follows each convolution and has the bias.
nn::Conv2d convolution(int64_t in, int64_t out, int64_t window, int64_t stride) {
  return nn::Conv2d(
      nn::Conv2dOptions(in, out, window).stride(stride).padding(window / 2).bias(false));
}

}  // namespace

BasicBlockImpl::BasicBlockImpl(int64_t in, int64_t out, int64_t stride)
    : conv1_(register_module("conv1", convolution(in, out, 3, stride))),
      norm1_(register_module("norm1", nn::BatchNorm2d(out))),
      conv2_(register_module("conv2", convolution(out, out, 3, 1))),
      norm2_(register_module("norm2", nn::BatchNorm2d(out))),
      shortcut_(register_module("shortcut", nn::Sequential())) {
  if (in != out || stride != 1) {
    shortcut_->push_back("conv", convolution(in, out, 1, stride));
    shortcut_->push_back("norm", nn::BatchNorm2d(out));
  }
}

torch::Tensor BasicBlockImpl::forward(const torch::Tensor& x) {
  const torch::Tensor y = norm2_(conv2_(torch::relu(norm1_(conv1_(x)))));
  return torch::relu(y + (shortcut_->is_empty() ? x : shortcut_->forward(x)));
}

ResNet::ResNet(const ResNetConfig& config)
    : stem_(register_module("stem", convolution(1, config.width, 3, 1))),
      stem_norm_(register_module("stem_norm", nn::BatchNorm2d(config.width))),
      blocks_(register_module("blocks", nn::Sequential())),
      head_(register_module("head", nn::Linear(config.width << (kStages - 1), kClasses))) {
  int64_t in = config.width;
  for (int64_t stage = 0; stage < kStages; ++stage) {
    const int64_t out = config.width << stage;
    for (int64_t block = 0; block < config.blocks; ++block) {
      blocks_->push_back(BasicBlock(in, out, /*stride=*/stage > 0 && block == 0 ? 2 : 1));
      in = out;
    }
  }
}

torch::Tensor ResNet::forward(const torch::Tensor& images) {
  // Channels last: convolutions read them side by side, and all that follow keep the layout.
  const torch::Tensor x =
      torch::relu(stem_norm_(stem_(images))).contiguous(torch::MemoryFormat::ChannelsLast);
  return head_(blocks_->forward(x).mean({2, 3}));
}

}  // namespace fashion
