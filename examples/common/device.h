// Chooses where an example runs, and says why.
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/torch.h>

#include <stdexcept>
#include <string>

#include "text.h"

namespace examples {

struct DeviceChoice {
  torch::Device device = torch::kCPU;
  std::string reason;
};

// Why the GPU cannot be used; empty when it can.
inline std::string why_no_cuda() {
  if (!at::detail::getCUDAHooks().hasCUDART()) {
    return "this LibTorch is built without CUDA";
  }
  if (torch::cuda::device_count() == 0) {
    return "no NVIDIA GPU with a working driver was found";
  }
  try {
    // A GPU can be visible and still be too old for the kernels that this LibTorch contains.
    torch::ones({1}, torch::kCUDA).add(1).item<float>();
    return "";
  } catch (const c10::Error& error) {
    return "the GPU does not work with this LibTorch: " + first_line(error);
  }
}

// `name` is auto, cpu or cuda. Where CUDA cannot be had, "auto" takes the CPU, "cuda" is an error.
inline DeviceChoice choose_device(const std::string& name) {
  const auto cpu = [](const std::string& why) {
    const int threads = torch::get_num_threads();
    return DeviceChoice{
        torch::kCPU,
        why + "; " + std::to_string(threads) + (threads == 1 ? " thread" : " threads")};
  };
  if (name == "cpu") {
    return cpu("as asked");
  }
  TORCH_CHECK(name == "auto" || name == "cuda", "device: expected auto, cpu or cuda, got ", name);
  const std::string obstacle = why_no_cuda();
  if (obstacle.empty()) {
    return {torch::Device(torch::kCUDA, 0), name == "cuda" ? "as asked" : "a GPU is there"};
  }
  if (name == "cuda") {
    throw std::runtime_error("device cuda cannot be used: " + obstacle);
  }
  return cpu("because " + obstacle);
}

// As reports name it.
inline std::string described(torch::Device device) {
  return device.str() +
         (device.is_cpu() ? ", threads: " + std::to_string(torch::get_num_threads()) : "");
}

}  // namespace examples
