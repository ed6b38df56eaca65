#include "model/training.h"

#include <algorithm>

namespace transxssm {
namespace {

Carver reserve(Carver& carver, int64_t bytes) {
  const Tensor region = carver.take(DType::u8, {bytes});
  return region.empty() ? Carver() : Carver(static_cast<std::byte*>(region.raw()), bytes, carver.on_host());
}

}  // namespace

TrainingWork::Slot TrainingWork::carve_slot(const Network& network, Carver& carver, int64_t rows,
                                            int64_t tokens, Recompute recompute) {
  const Shape residual = {rows * tokens, network.config().d_model};
  const StageCut& cut = network.cut();
  Slot slot;
  for (int i = 0; i <= cut.num_layers; ++i) {
    const bool received = i == 0 && !cut.has_embedding;
    const bool sent = i == cut.num_layers && !cut.has_head;
    slot.x.push_back(received || sent ? Tensor{} : carver.take(network.precision().residual, residual));
  }
  if (recompute == Recompute::keep)
    for (const auto& layer : network.layers())
      slot.saved.push_back(reserve(carver, layer->saved_bytes(rows, tokens)));
  if (cut.has_head) slot.head = reserve(carver, network.head()->saved_bytes(rows * tokens));
  return slot;
}

TrainingWork::Pending TrainingWork::carve_pending(const Network& network, Carver& carver, int64_t rows,
                                                  int64_t tokens, Recompute recompute) {
  const Shape residual = {rows * tokens, network.config().d_model};
  const StageCut& cut = network.cut();
  Pending pending;
  for (int i = 0; i <= cut.num_layers; ++i) {
    const bool sent = i == 0 && !cut.has_embedding;
    const bool received = i == cut.num_layers && !cut.has_head;
    pending.dy.push_back(sent || received ? Tensor{} : carver.take(network.precision().residual, residual));
  }
  int64_t most_saved = 0, most_pending = 0;
  for (const auto& layer : network.layers()) {
    most_saved = std::max(most_saved, layer->saved_bytes(rows, tokens));
    most_pending = std::max(most_pending, layer->pending_bytes(rows, tokens));
    if (recompute == Recompute::keep)
      pending.layers.push_back(reserve(carver, layer->pending_bytes(rows, tokens)));
  }
  if (recompute == Recompute::keep) return pending;
  pending.recomputed = reserve(carver, most_saved);
  pending.y = carver.take(network.precision().residual, residual);
  pending.layers.assign(network.layers().size(), reserve(carver, most_pending));  // each done before the next
  return pending;
}

ActivationBytes TrainingWork::activation_bytes(const Network& network, int64_t rows, int64_t tokens,
                                               Recompute recompute) {
  Carver slot, pending;
  carve_slot(network, slot, rows, tokens, recompute);
  carve_pending(network, pending, rows, tokens, recompute);
  return {slot.used(), pending.used()};
}

TrainingWork::TrainingWork(Stream& stream, const Network& network, int64_t rows, int64_t tokens,
                           int num_slots, Recompute recompute)
    : stream_(stream), network_(network), rows_(rows), tokens_(tokens), recompute_(recompute) {
  const ActivationBytes bytes = activation_bytes(network, rows, tokens, recompute);
  arena_ = Arena(num_slots * bytes.slot + bytes.pending + 2 * carved_bytes(DType::f64, {1}), stream.device());
  host_loss_scale_ = Arena(kAlignment, stream.device(), MemoryKind::pinned);
  Carver carver = arena_.carver();
  for (int i = 0; i < num_slots; ++i) slots_.push_back(carve_slot(network, carver, rows, tokens, recompute));
  pending_ = carve_pending(network, carver, rows, tokens, recompute);
  loss_ = carver.take(DType::f64, {1});
  loss_scale_ = carver.take(DType::f64, {1});
}

void TrainingWork::begin(std::span<const TokenRows> microbatches) {
  microbatches_ = microbatches;
  zero(stream_, loss_);
}

void TrainingWork::begin_training(std::span<const TokenRows> microbatches, double loss_scale) {
  begin(microbatches);
  const Tensor host = host_loss_scale_.carver().take(DType::f64, {1});
  *host.data<double>() = loss_scale;
  transfer(stream_, host, loss_scale_);
  training_ = true;
}

void TrainingWork::begin_evaluation(std::span<const TokenRows> microbatches) {
  begin(microbatches);
  training_ = false;
  const auto rows = static_cast<int64_t>(microbatches.size()) * rows_;
  if (!row_losses_ || row_losses_.size(0) != rows) {
    row_loss_arena_ = Arena(carved_bytes(DType::f64, {rows}), stream_.device());
    row_losses_ = row_loss_arena_.carver().take(DType::f64, {rows});
    host_row_losses_.resize(static_cast<size_t>(rows));
  }
  zero(stream_, row_losses_);
}

double TrainingWork::loss_sum() const {
  double nats = 0;
  if (network_.head()) transfer(stream_, loss_, Tensor(&nats, DType::f64, {1}));
  stream_.synchronize();
  return nats;
}

const std::vector<double>& TrainingWork::row_losses() {
  if (network_.head())
    transfer(stream_, row_losses_, Tensor(host_row_losses_.data(), DType::f64, {row_losses_.size(0)}));
  stream_.synchronize();
  return host_row_losses_;
}

TokenContext TrainingWork::context(const TokenRows& rows) const {
  const Shape flat = {rows_ * tokens_};
  return {.rows = rows_,
          .tokens = tokens_,
          .position = rows.batch.position.reshape(flat),
          .start = rows.start,
          .first_key = rows.first_key,
          .q_scale = rows.q_scale ? rows.q_scale.reshape(flat) : Tensor{},
          .c_scale = rows.c_scale};
}

void TrainingWork::forward(int microbatch, int slot_index, const Tensor& input, const Tensor& output) {
  const TokenRows& token_rows = microbatches_[static_cast<size_t>(microbatch)];
  const Batch& batch = token_rows.batch;
  Slot& slot = slots_[static_cast<size_t>(slot_index)];
  const Shape residual = {rows_ * tokens_, network_.config().d_model};
  const TokenContext tokens = context(token_rows);
  if (network_.embedding())
    network_.embedding()->forward(stream_, batch.input.reshape({rows_ * tokens_}), slot.x.front());
  else
    slot.x.front() = input.reshape(residual);
  const size_t layers = network_.layers().size();
  for (size_t i = 0; i < layers; ++i) {
    const bool sent = i + 1 == layers && !network_.head();
    const Tensor y = sent ? output.reshape(residual) : slot.x[i + 1];
    network_.layers()[i]->forward(stream_, tokens, slot.x[i], y, saved(slot, i));
    if (observer_) observer_(microbatch, network_.cut().first_layer + static_cast<int>(i), y);
  }
  if (!network_.head()) return;
  const LossTargets targets{batch.target.reshape({rows_ * tokens_}), batch.valid.reshape({rows_ * tokens_}),
                            training_ ? loss_ : row_losses_.slice(0, microbatch * rows_, rows_), loss_scale_};
  if (training_)
    network_.head()->loss_and_gradients(stream_, targets, slot.x[layers], slot.head);
  else
    network_.head()->loss(stream_, targets, slot.x[layers], slot.head);
}

void TrainingWork::backward_input(int microbatch, int slot_index, const Tensor& d_output,
                                  const Tensor& d_input) {
  const Slot& slot = slots_[static_cast<size_t>(slot_index)];
  const Shape residual = {rows_ * tokens_, network_.config().d_model};
  const TokenContext tokens = context(microbatches_[static_cast<size_t>(microbatch)]);
  pending_microbatch_ = microbatch;
  const size_t layers = network_.layers().size();
  if (network_.head())
    network_.head()->backward_input(stream_, slot.x[layers], pending_.dy[layers], slot.head);
  else
    pending_.dy[layers] = d_output.reshape(residual);
  for (size_t i = layers; i-- > 0;) {
    const bool sent = i == 0 && !network_.embedding();
    if (recompute_ == Recompute::layer)
      network_.layers()[i]->forward(stream_, tokens, slot.x[i], pending_.y, saved(slot, i));
    network_.layers()[i]->backward_input(stream_, tokens, slot.x[i], pending_.dy[i + 1],
                                         sent ? d_input.reshape(residual) : pending_.dy[i], saved(slot, i),
                                         pending_.layers[i]);
    if (recompute_ == Recompute::keep) continue;
    network_.layers()[i]->backward_weight(stream_, tokens, pending_.dy[i + 1], saved(slot, i),
                                          pending_.layers[i]);  // now: the next layer takes the same memory
    layer_complete(microbatch, i);
  }
}

// Microbatches pass backwards in ascending order, and the head's gradients come with the forward.
void TrainingWork::layer_complete(int microbatch, size_t layer) const {
  if (sums_.complete && static_cast<size_t>(microbatch) + 1 == microbatches_.size())
    sums_.complete(network_.first_matrix(layer));
}

void TrainingWork::backward_weight(int microbatch, int slot_index) {
  const Slot& slot = slots_[static_cast<size_t>(slot_index)];
  const TokenRows& token_rows = microbatches_[static_cast<size_t>(microbatch)];
  const TokenContext tokens = context(token_rows);
  TRANSXSSM_CHECK(pending_microbatch_ == microbatch,
                  "W of microbatch {} follows B of {}: one set of gradients waits", microbatch,
                  pending_microbatch_);
  for (size_t i = recompute_ == Recompute::keep ? network_.layers().size() : 0; i-- > 0;) {
    network_.layers()[i]->backward_weight(stream_, tokens, pending_.dy[i + 1], saved(slot, i),
                                          pending_.layers[i]);
    layer_complete(microbatch, i);
  }
  if (network_.embedding())
    network_.embedding()->backward_weight(stream_, token_rows.batch.input.reshape({rows_ * tokens_}),
                                          pending_.dy.front());
  if (sums_.complete && static_cast<size_t>(microbatch) + 1 == microbatches_.size()) sums_.complete(0);
}

}  // namespace transxssm
