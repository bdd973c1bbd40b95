// The module types that scopes know: LibTorch's own, and those that programs register.
#include <te_int8/modules.h>

#include <algorithm>
#include <mutex>
#include <sstream>
#include <string>
#include <unordered_map>

#include <torch/nn/modules.h>

#include <te_int8/quantized_linear.h>

namespace te_int8::inline v0::detail {

void Replacement::print_as_quantized(std::ostream& stream, const torch::nn::Module& original) {
  std::ostringstream printed;
  original.pretty_print(printed);
  const auto text = printed.str();
  // Namespaces go: "torch::nn::Linear(in_features=...", "(anonymous namespace)::MineImpl".
  const std::string unnamed = "(anonymous namespace)::";
  const auto found = text.rfind(unnamed);
  const auto begin = found == std::string::npos ? 0 : found + unnamed.size();
  const auto scope = text.rfind("::", text.find('(', begin));
  stream << "te_int8::Quantized" << text.substr(scope == std::string::npos ? begin : std::max(begin, scope + 2));
}

namespace {

struct ModuleTypes {
  std::mutex mutex;
  std::vector<std::shared_ptr<const ModuleType>> in_order;
  /// What was found, by a module's own type.
  std::unordered_map<std::type_index, std::shared_ptr<const ModuleType>> found;

  void add(ModuleType type) {
    std::erase_if(in_order, [&](const auto& known) { return known->type == type.type; });
    in_order.push_back(std::make_shared<const ModuleType>(std::move(type)));
    found.clear();
  }
};

Weights weights_of_attention(torch::nn::MultiheadAttentionImpl& m) {
  if (m.in_proj_weight.defined()) return {{"in_proj", m.in_proj_weight, m.in_proj_bias}};
  // Key and value have sizes of their own; the bias is one all the same.
  const auto width = m.options.embed_dim();
  return {
      {"q_proj", m.q_proj_weight, m.in_proj_bias},
      {"k_proj", m.k_proj_weight, m.in_proj_bias, width},
      {"v_proj", m.v_proj_weight, m.in_proj_bias, 2 * width}};
}

/// Types with one weight, whose modules a Quantized stands for in the tree.
template <typename... Modules, typename Function>
void add_replaced(ModuleTypes& types, Function weight) {
  const auto add = [&]<typename Module>(const Module*) {
    const auto weights = [weight](Module& m) { return Weights{weight(m)}; };
    auto type = module_type<Module>(weights);
    type.has_weights_only = true;
    type.replacement = [weights](const std::shared_ptr<torch::nn::Module>& original) {
      return std::make_shared<Quantized<Module>>(std::dynamic_pointer_cast<Module>(original), weights);
    };
    types.add(std::move(type));
  };
  (add(static_cast<const Modules*>(nullptr)), ...);
}

template <typename... Modules>
void add_in_full_precision(ModuleTypes& types, const std::string& reason) {
  const auto add = [&](ModuleType type) {
    type.reason = reason;
    types.add(std::move(type));
  };
  (add(module_type<Modules>()), ...);
}

ModuleTypes& module_types() {
  // Never destroyed: static objects may open scopes while the process ends.
  static auto* types = [] {
    auto* known = new ModuleTypes;
    auto linear = module_type<torch::nn::LinearImpl>(weights_of_linear);
    linear.has_weights_only = true;
    linear.replacement = [](const std::shared_ptr<torch::nn::Module>& original) {
      return std::make_shared<QuantizedLinearImpl>(
          std::dynamic_pointer_cast<torch::nn::LinearImpl>(original), weights_of_linear);
    };
    known->add(std::move(linear));
    known->add(module_type<torch::nn::MultiheadAttentionImpl>(weights_of_attention));
    using namespace torch::nn;
    add_in_full_precision<
        LayerNormImpl, GroupNormImpl, BatchNorm1dImpl, BatchNorm2dImpl, BatchNorm3dImpl, InstanceNorm1dImpl,
        InstanceNorm2dImpl, InstanceNorm3dImpl>(*known, "norms stay in full precision");
    add_replaced<EmbeddingImpl>(*known, [](auto& m) { return Weight("", m.weight).of(Operation::Embedding); });
    add_in_full_precision<EmbeddingBagImpl>(*known, "bags of embeddings stay in full precision");
    add_replaced<Conv1dImpl, Conv2dImpl, Conv3dImpl>(
        *known, [](auto& m) { return Weight("", m.weight, m.bias).of(Operation::Convolution); });
    add_in_full_precision<ConvTranspose1dImpl, ConvTranspose2dImpl, ConvTranspose3dImpl>(
        *known, "transposed convolutions stay in full precision");
    add_in_full_precision<RNNImpl, LSTMImpl, GRUImpl, RNNCellImpl, LSTMCellImpl, GRUCellImpl>(
        *known, "recurrent layers stay in full precision: LibTorch multiplies inside of one operation");
    add_in_full_precision<BilinearImpl>(*known, "bilinear layers stay in full precision");
    add_in_full_precision<PReLUImpl>(*known, "activation functions stay in full precision");
    return known;
  }();
  return *types;
}

}  // namespace

void register_module_type(ModuleType type) {
  auto& types = module_types();
  const std::lock_guard lock(types.mutex);
  types.add(std::move(type));
}

std::shared_ptr<const ModuleType> module_type_of(const torch::nn::Module& module) {
  auto& types = module_types();
  const std::lock_guard lock(types.mutex);
  const std::type_index type = typeid(module);
  const auto [known, added] = types.found.try_emplace(type);
  if (!added) return known->second;
  const auto exact = std::ranges::find(types.in_order, type, [](const auto& t) { return t->type; });
  if (exact != types.in_order.end()) return known->second = *exact;
  const auto base = std::find_if(
      types.in_order.rbegin(), types.in_order.rend(), [&](const auto& t) { return t->is_base_of(module); });
  if (base != types.in_order.rend()) known->second = *base;
  return known->second;
}

}  // namespace te_int8::inline v0::detail
