// Everything a run needs to continue as if it had never stopped: the model, the optimizer,
// LibTorch's random generators, the program's own counters, and the settings it was started with.
#pragma once

#include <torch/torch.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "atomic_file.h"
#include "text.h"

namespace examples {

using Settings = std::map<std::string, std::string>;
using Counters = std::map<std::string, torch::Tensor>;

inline std::vector<at::Generator> random_generators(torch::Device device) {
  std::vector<at::Generator> generators = {at::globalContext().defaultGenerator(torch::kCPU)};
  if (device.is_cuda()) {
    generators.push_back(at::globalContext().defaultGenerator(device));
  }
  return generators;
}

inline void save_checkpoint(
    const std::string& path, const torch::nn::Module& model,
    const torch::optim::Optimizer& optimizer, const Counters& counters, const Settings& settings,
    torch::Device device) {
  torch::serialize::OutputArchive file;
  torch::serialize::OutputArchive model_part;
  model.save(model_part);
  file.write("model", model_part);
  torch::serialize::OutputArchive optimizer_part;
  optimizer.save(optimizer_part);
  file.write("optimizer", optimizer_part);
  for (const auto& [name, tensor] : counters) {
    file.write("counter_" + name, tensor);
  }
  c10::Dict<std::string, std::string> dictionary;
  for (const auto& [name, value] : settings) {
    dictionary.insert(name, value);
  }
  file.write("settings", c10::IValue(dictionary));
  auto generators = random_generators(device);
  for (size_t i = 0; i < generators.size(); ++i) {
    const std::lock_guard<std::mutex> lock(generators[i].mutex());
    file.write("generator_" + std::to_string(i), generators[i].get_state());
  }
  try {
    write_atomically(path, [&](const std::string& temporary) { file.save_to(temporary); });
  } catch (const c10::Error& error) {
    throw std::runtime_error("cannot write the checkpoint " + path + ": " + first_line(error));
  }
}

// The first setting in which a checkpoint differs from the run that wants to resume it.
inline void check_same_settings(
    const std::string& path, const Settings& saved, const Settings& wanted) {
  for (const auto& [name, value] : wanted) {
    const auto found = saved.find(name);
    const std::string was = found == saved.end() ? "nothing" : found->second;
    if (was != value) {
      throw std::runtime_error(
          path + " was written by a run with " + name + " = " + was + ", this run has " + value +
          ": a run resumes with the settings it was started with");
    }
  }
}

// Only the model, to begin another run with.
inline void load_model(const std::string& path, torch::nn::Module& model, torch::Device device) {
  try {
    torch::serialize::InputArchive file;
    file.load_from(path, device);
    torch::serialize::InputArchive model_part;
    file.read("model", model_part);
    model.load(model_part);
  } catch (const c10::Error& error) {
    throw std::runtime_error("cannot begin with the model of " + path + ": " + first_line(error));
  }
}

// `counters` names what to read, and receives the values.
inline void load_checkpoint(
    const std::string& path, torch::nn::Module& model, torch::optim::Optimizer& optimizer,
    Counters& counters, const Settings& settings, torch::Device device) {
  try {
    torch::serialize::InputArchive file;
    file.load_from(path, device);
    c10::IValue dictionary;
    file.read("settings", dictionary);
    Settings saved;
    for (const auto& entry : dictionary.toGenericDict()) {
      saved[entry.key().toStringRef()] = entry.value().toStringRef();
    }
    check_same_settings(path, saved, settings);

    torch::serialize::InputArchive model_part;
    file.read("model", model_part);
    model.load(model_part);
    torch::serialize::InputArchive optimizer_part;
    file.read("optimizer", optimizer_part);
    optimizer.load(optimizer_part);
    for (auto& [name, tensor] : counters) {
      file.read("counter_" + name, tensor);
    }
    auto generators = random_generators(device);
    for (size_t i = 0; i < generators.size(); ++i) {
      torch::Tensor state;
      file.read("generator_" + std::to_string(i), state);
      const std::lock_guard<std::mutex> lock(generators[i].mutex());
      generators[i].set_state(state.cpu());
    }
  } catch (const c10::Error& error) {
    throw std::runtime_error("cannot resume from " + path + ": " + first_line(error));
  }
}

}  // namespace examples
