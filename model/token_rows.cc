#include "model/token_rows.h"

#include <algorithm>

#include "model/rotary_table.h"

namespace transxssm {
namespace {

// What the rotary factors of C and B come to in their product.
double scan_factor(const ModelConfig& config) {
  return config.ssd_position == SsdPosition::rope ? rotary_factor(config) * rotary_factor(config) : 1;
}

Tensor all_of(const Arena& arena) {
  return arena.carver().take(DType::u8, {arena.bytes()});
}

}  // namespace

TokenRows TokenRows::carve(Carver& carver, const ModelConfig& config, int64_t rows, int64_t tokens) {
  const Shape shape = {rows, tokens};
  TokenRows r;
  r.batch = Batch::carve(carver, rows, tokens);
  r.start = carver.take(DType::u8, shape);
  r.first_key = carver.take(DType::i32, shape);
  if (config.log_n_scale) r.q_scale = carver.take(DType::f32, shape);
  if (config.log_n_scale || scan_factor(config) != 1) r.c_scale = carver.take(DType::f32, shape);
  return r;
}

int64_t TokenRows::bytes(const ModelConfig& config, int64_t rows, int64_t tokens) {
  Carver count;
  carve(count, config, rows, tokens);
  return count.used();
}

void TokenRows::derive(const ModelConfig& config) const {
  const double factor = scan_factor(config);
  for (int64_t b = 0; b < batch.rows(); ++b) {
    for (int64_t t = 0; t < batch.tokens(); ++t) {
      const int32_t p = batch.position.at<int32_t>({b, t});
      start.at<uint8_t>({b, t}) = p == 0;
      first_key.at<int32_t>({b, t}) = static_cast<int32_t>(std::max<int64_t>(0, t - p));
      const double log_n = config.log_n_scale ? log_n_factor(config, p) : 1;
      if (q_scale) q_scale.at<float>({b, t}) = static_cast<float>(log_n);
      if (c_scale) c_scale.at<float>({b, t}) = static_cast<float>(factor * log_n);
    }
  }
}

TokenRows TokenRows::row_range(int64_t begin, int64_t count) const {
  const auto rows = [&](const Tensor& tensor) { return tensor ? tensor.slice(0, begin, count) : tensor; };
  return {batch.row_range(begin, count), rows(start), rows(first_key), rows(q_scale), rows(c_scale)};
}

TokenFeed::TokenFeed(Stream& stream, const ModelConfig& config, int64_t rows, int64_t tokens)
    : stream_(stream),
      config_(config),
      host_arena_(TokenRows::bytes(config, rows, tokens), stream.device(), MemoryKind::pinned) {
  Carver host = host_arena_.carver();
  host_ = device_ = TokenRows::carve(host, config, rows, tokens);
  if (stream.device().is_cpu()) return;
  device_arena_ = Arena(host_arena_.bytes(), stream.device());
  Carver device = device_arena_.carver();
  device_ = TokenRows::carve(device, config, rows, tokens);
}

void TokenFeed::upload() {
  host_.derive(config_);
  if (device_arena_.bytes() > 0) transfer(stream_, all_of(host_arena_), all_of(device_arena_));
}

TokenRows TokenFeed::rows(int64_t begin, int64_t count) const {
  TokenRows found = device_.row_range(begin, count);
  const Tensor keys = host_.first_key.slice(0, begin, count);
  const int32_t* first = keys.data<int32_t>();
  if (std::all_of(first, first + keys.num_elements(), [](int32_t key) { return key == 0; }))
    found.first_key = {};
  return found;
}

}  // namespace transxssm
