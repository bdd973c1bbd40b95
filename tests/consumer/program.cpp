// What a project that uses te_int8 compiles and runs: the guard must reach a layer of its model.
#include <cstdio>

#include <te_int8/te_int8.h>

int main() {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(16, 8), torch::nn::ReLU(), torch::nn::Linear(8, 4));
  const auto x = torch::randn({3, 16});
  const auto before = model->forward(x);
  {
    te_int8::AutocastGuard guard(*model, te_int8::Mode::QAT);
    const auto loss = model->forward(x).sum();
    int64_t reached = 0;
    for (const auto& layer : guard.report().layers) {
      reached += layer.calls;
    }
    if (reached != 2) {
      std::fprintf(stderr, "expected 2 calls of quantized layers, got %d\n", static_cast<int>(reached));
      return 1;
    }
    loss.backward();
  }
  if (!torch::equal(before, model->forward(x))) {
    std::fputs("expected the model's output after the scope to be what it was before\n", stderr);
    return 1;
  }
  std::puts("2 layers quantized, the model restored");
}
