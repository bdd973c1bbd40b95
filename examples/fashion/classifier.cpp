#include "classifier.h"

#include "resnet.h"
#include "vit.h"

namespace fashion {

std::shared_ptr<Classifier> make_classifier(const std::string& model, const std::string& size) {
  TORCH_CHECK(size == "small" || size == "large", "size: expected small or large, got ", size);
  const bool small = size == "small";
  if (model == "resnet") {  // 78,000 or 0.7 million parameters
    return std::make_shared<ResNet>(
        small ? ResNetConfig{.width = 16, .blocks = 1} : ResNetConfig{.width = 32, .blocks = 2});
  }
  TORCH_CHECK(model == "vit", "model: expected resnet or vit, got ", model);
  return std::make_shared<VisionTransformer>(  // 155,000 or 1.8 million
      small ? VitConfig{.width = 64, .layers = 3, .heads = 4, .dropout = 0}
            : VitConfig{.width = 192, .layers = 4, .heads = 6, .dropout = 0.1});
}

}  // namespace fashion
