// A layer in a scope around a whole test, for the tests of its weight's codes.
#pragma once

#include "guard_support.h"

namespace te_int8_test {

/// A layer in a scope around the whole test, warmed up by one forward.
struct Warm {
  OneLayer model;
  Tensor x = torch::randn({5, 8});
  torch::optim::SGD sgd{model->parameters(), torch::optim::SGDOptions(0.5)};
  Tensor alive;  ///< a graph that outlives a step

  Tensor& weight() { return model->fc->weight; }
  Tensor forward() { return model->forward(x); }
  void backward() { forward().pow(2).sum().backward(); }
  bool fresh() {
    const torch::NoGradGuard no_grad;
    return same(forward(), int8_result(*model->fc, x));
  }
};

}  // namespace te_int8_test
