// Reads files of the safetensors format: 8 bytes with the length of a JSON header, the header, and the
// tensors' bytes without gaps. Nothing in a file is believed before it is checked.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <istream>
#include <map>
#include <string>

namespace minilm {

using NamedTensors = std::map<std::string, torch::Tensor>;

// The tensors own their memory. Errors are std::runtime_error and name the file, the tensor, what was
// expected and what was found.
NamedTensors load_safetensors(const std::string& path);

// The same from a stream of `size` bytes; `name` stands for the file in errors.
NamedTensors read_safetensors(std::istream& stream, uint64_t size, const std::string& name);

}  // namespace minilm
