#include "model/embedding.h"

#include "kernels/embedding.h"

namespace transxssm {

ParameterSpec word_embedding_spec(const ModelConfig& config, const Shard& shard) {
  const Shape shape = {config.vocab_size, config.d_model};
  return {.name = "model.word_embed.weight",
          .global_shape = shape,
          .box = cut_box(shape, 0, shard.vocabulary.begin, shard.vocabulary.count)};
}

Embedding::Embedding(const ModelConfig& config, const Shard& shard, ParameterStore& store,
                     const Boundary& boundary, bool tied_pair)
    : store_(&store), boundary_(boundary), first_id_(shard.vocabulary.begin) {
  ParameterSpec spec = word_embedding_spec(config, shard);
  spec.tied_pair = tied_pair;
  weight_ = store.declare(std::move(spec));
}

void Embedding::forward(Stream& stream, const Tensor& ids, const Tensor& y) const {
  run(stream, EmbeddingForward{ids, (*store_)[weight_].weight, y, first_id_});
  boundary_.leave_forward(y);
}

void Embedding::backward_weight(Stream& stream, const Tensor& ids, const Tensor& dy) const {
  boundary_.leave_backward(dy);
  run(stream, EmbeddingBackward{ids, dy, (*store_)[weight_].gradient, first_id_});
}

}  // namespace transxssm
