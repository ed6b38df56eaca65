// Token embedding, cut over the vocabulary: each rank looks up its own rows, `leave` sums.
#pragma once

#include "model/config.h"
#include "model/parameter.h"
#include "model/shard.h"
#include "parallel/boundary.h"

namespace transxssm {

// "model.word_embed.weight" [V,D] as this rank holds it.
ParameterSpec word_embedding_spec(const ModelConfig& config, const Shard& shard);

class Embedding {
 public:
  // `tied_pair`: the last stage holds a copy of this weight.
  Embedding(const ModelConfig& config, const Shard& shard, ParameterStore& store, const Boundary& boundary,
            bool tied_pair);
  void forward(Stream& stream, const Tensor& ids, const Tensor& y) const;  // ids [BT], y [BT,D]
  void backward_weight(Stream& stream, const Tensor& ids, const Tensor& dy) const;
  int parameter() const { return weight_; }

 private:
  const ParameterStore* store_;
  Boundary boundary_;
  int64_t first_id_;
  int weight_;
};

}  // namespace transxssm
