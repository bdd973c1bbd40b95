#include "pronouncer.h"

#include <limits>

namespace pronounce {

namespace nn = torch::nn;
namespace F = torch::nn::functional;

PronouncerImpl::PronouncerImpl(const PronouncerConfig& config)
    : letters_(register_module("letters", nn::Embedding(kLetterCodes, config.width))),
      letter_positions_(register_module("letter_positions", nn::Embedding(kLongest, config.width))),
      phonemes_(register_module("phonemes", nn::Embedding(kPhonemeCodes, config.width))),
      phoneme_positions_(
          register_module("phoneme_positions", nn::Embedding(kLongest, config.width))),
      dropout_(register_module("dropout", nn::Dropout(config.dropout))),
      transformer_(register_module(
          "transformer",
          nn::Transformer(
              nn::TransformerOptions(config.width, config.heads, config.layers, config.layers)
                  .dim_feedforward(4 * config.width)
                  .dropout(config.dropout)
                  .activation(torch::kGELU)))),
      head_(register_module("head", nn::Linear(config.width, kSpokenCodes))) {}

torch::Tensor PronouncerImpl::embed(
    nn::Embedding& symbols, nn::Embedding& positions, const torch::Tensor& codes) {
  const auto places = torch::arange(codes.size(1), codes.options());
  return dropout_(symbols(codes.t()) + positions(places).unsqueeze(1));
}

Memory PronouncerImpl::encode(const torch::Tensor& letters) {
  const torch::Tensor padding = letters == kNoLetter;
  const torch::Tensor states = transformer_->encoder.forward<torch::Tensor>(
      embed(letters_, letter_positions_, letters), /*src_mask=*/torch::Tensor(), padding);
  return {states, padding};
}

torch::Tensor PronouncerImpl::decode(const Memory& memory, const torch::Tensor& phonemes) {
  // What fills a word up comes after its end, where no moment that counts sees it.
  const int64_t time = phonemes.size(1);
  const torch::Tensor causal =
      torch::full({time, time}, -std::numeric_limits<float>::infinity(), memory.states.options())
          .triu(1);
  return transformer_->decoder.forward<torch::Tensor>(
      embed(phonemes_, phoneme_positions_, phonemes), memory.states, causal,
      /*memory_mask=*/torch::Tensor(), /*tgt_key_padding_mask=*/torch::Tensor(), memory.padding);
}

torch::Tensor PronouncerImpl::loss(const WordBatch& batch, double label_smoothing) {
  const torch::Tensor predicted = logits(decode(encode(batch.letters), batch.inputs));
  return F::cross_entropy(
      predicted.flatten(0, 1), batch.targets.t().flatten(),
      F::CrossEntropyFuncOptions().ignore_index(kNoPhoneme).label_smoothing(label_smoothing));
}

}  // namespace pronounce
