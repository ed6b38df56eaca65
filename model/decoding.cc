#include "model/decoding.h"

#include <algorithm>

#include "kernels/copy.h"

namespace transxssm {

DecodingWork::DecodingWork(Stream& stream, const Network& network, int64_t rows)
    : stream_(stream), network_(network), cached_(static_cast<size_t>(rows)) {
  auto carve = [&](Carver& carver) {
    caches_.clear();
    for (const auto& layer : network.layers())
      caches_.push_back(layer->make_cache(carver, rows, network.positions()));
    if (network.head()) logits_ = carver.take(DType::f32, {rows, network.config().vocab_size});
  };
  Carver count;
  carve(count);
  arena_ = Arena(std::max(count.used(), kAlignment), stream.device());
  Carver carver = arena_.carver();
  carve(carver);
}

void DecodingWork::begin(const Tensor& ids, int64_t first_row) {
  first_row_ = first_row;
  num_rows_ = ids.size(0);
  num_tokens_ = ids.size(1);
  for (int64_t row = first_row; row < first_row + ids.size(0); ++row)
    TRANSXSSM_CHECK(cached_[static_cast<size_t>(row)] + ids.size(1) <= network_.positions(),
                    "{} tokens do not fit a cache of {}", cached_[static_cast<size_t>(row)] + ids.size(1),
                    network_.positions());
  stream_.synchronize();  // the staging memory may be under way
  const int64_t bytes = TokenRows::bytes(network_.config(), num_rows_, num_tokens_);
  if (staging_.bytes() < bytes) staging_ = Arena(bytes, stream_.device(), MemoryKind::pinned);
  Carver carver = staging_.carver();
  const TokenRows rows = TokenRows::carve(carver, network_.config(), num_rows_, num_tokens_);
  copy(ids, rows.batch.input);
  for (int64_t b = 0; b < num_rows_; ++b)
    for (int64_t t = 0; t < num_tokens_; ++t)
      rows.batch.position.at<int32_t>({b, t}) =
          static_cast<int32_t>(cached_[static_cast<size_t>(first_row + b)] + t);
  rows.derive(network_.config());
}

void DecodingWork::forward(int, int, const Tensor& input, const Tensor& output) {
  const int64_t rows = num_rows_, tokens = num_tokens_;
  const int64_t num_tokens = rows * tokens;
  int64_t* cached = cached_.data() + first_row_;
  const Shape residual = {num_tokens, network_.config().d_model};
  int64_t saved_bytes = 0;
  for (const auto& layer : network_.layers())
    saved_bytes = std::max(saved_bytes, layer->saved_bytes(rows, tokens));

  Carver count;
  struct Buffers {
    Tensor x, y, tokens, saved;
  };
  auto carve = [&](Carver& carver) {
    Buffers b;
    b.x = carver.take(network_.precision().residual, residual);
    b.y = carver.take(network_.precision().residual, residual);
    b.tokens = carver.take(DType::u8, {TokenRows::bytes(network_.config(), rows, tokens)});
    b.saved = carver.take(DType::u8, {saved_bytes});
    return b;
  };
  carve(count);
  Scratch scratch(stream_, count.used());
  Carver carver = scratch.carver();
  Buffers b = carve(carver);
  const Carver saved(static_cast<std::byte*>(b.saved.raw()), saved_bytes, carver.on_host());
  transfer(stream_, staging_.carver().take(DType::u8, b.tokens.shape()), b.tokens);
  Carver token_carver(static_cast<std::byte*>(b.tokens.raw()), b.tokens.num_bytes(), carver.on_host());
  const TokenRows token_rows = TokenRows::carve(token_carver, network_.config(), rows, tokens);
  TokenContext context{.rows = rows,
                       .tokens = tokens,
                       .position = token_rows.batch.position.reshape({num_tokens}),
                       .start = token_rows.start,
                       .q_scale = token_rows.q_scale ? token_rows.q_scale.reshape({num_tokens}) : Tensor{},
                       .c_scale = token_rows.c_scale,
                       .cached = cached};
  if (network_.embedding())
    network_.embedding()->forward(stream_, token_rows.batch.input.reshape({num_tokens}), b.x);
  else
    run(stream_, Copy{input.reshape(residual), b.x});
  for (size_t i = 0; i < network_.layers().size(); ++i) {
    LayerCache cache;  // these rows of it
    for (Tensor LayerCache::*part :
         {&LayerCache::keys, &LayerCache::values, &LayerCache::state, &LayerCache::window})
      if (caches_[i].*part) cache.*part = (caches_[i].*part).slice(0, first_row_, rows);
    context.cache = &cache;
    network_.layers()[i]->forward(stream_, context, b.x, b.y, saved);
    std::swap(b.x, b.y);
  }
  for (int64_t row = 0; row < rows; ++row) cached[row] += tokens;
  if (!network_.head()) {
    run(stream_, Copy{b.x, output.reshape(residual)});
    return;
  }
  for (int64_t row = 0; row < rows; ++row)
    network_.head()->logits(stream_, b.x.slice(0, (row + 1) * tokens - 1, 1),
                            logits_.slice(0, first_row_ + row, 1));
}

void DecodingWork::backward_input(int, int, const Tensor&, const Tensor&) {
  throw InternalError("decoding has no backward");
}

void DecodingWork::backward_weight(int, int) {
  throw InternalError("decoding has no backward");
}

}  // namespace transxssm
