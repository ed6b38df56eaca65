#include "parallel/sharding.h"

#include <algorithm>

namespace transxssm {

std::string Box::to_string() const {
  std::string text;
  for (int d = 0; d < offset.rank(); ++d) {
    text += fmt::format("{}{}:{}", d == 0 ? "" : ", ", offset[d], offset[d] + extent[d]);
  }
  return "[" + text + "]";
}

Box whole_box(const Shape& global) {
  Box box{global, global};
  for (int d = 0; d < global.rank(); ++d) box.offset[d] = 0;
  return box;
}

Box cut_box(const Shape& global, int dim, int64_t begin, int64_t count) {
  Box box = whole_box(global);
  box.offset[dim] = begin;
  box.extent[dim] = count;
  TRANSXSSM_CHECK(is_inside(box, global), "{} of {}", box.to_string(), global.to_string());
  return box;
}

bool is_inside(const Box& box, const Shape& global) {
  if (box.offset.rank() != global.rank() || box.extent.rank() != global.rank()) return false;
  for (int d = 0; d < global.rank(); ++d) {
    if (box.offset[d] < 0 || box.extent[d] < 0 || box.offset[d] > global[d]) return false;
    if (box.extent[d] > global[d] - box.offset[d]) return false;
  }
  return true;
}

std::string tp_error(std::string_view name, int64_t units, int tp, bool may_share) {
  if (units >= 1 && tp >= 1 && (units % tp == 0 || (may_share && tp % units == 0))) return {};
  std::string legal;
  for (int64_t n = 1; n <= std::min<int64_t>(units, 1024); ++n) {
    if (units % n == 0) legal += fmt::format("{}{}", legal.empty() ? "" : ", ", n);
  }
  return fmt::format("{} is {} and cannot be cut over tp {}: tp may be {}{}.", name, units, tp, legal,
                     may_share ? fmt::format(" or a multiple of {}", units) : "");
}

UnitShare cut_units(std::string_view name, int64_t units, int tp, int rank, bool may_share) {
  if (std::string error = tp_error(name, units, tp, may_share); !error.empty()) throw UsageError("{}", error);
  TRANSXSSM_CHECK(rank >= 0 && rank < tp, "tp rank {} of {}", rank, tp);
  if (units >= tp) return {units / tp * rank, units / tp, 1, 0};
  const int copies = tp / static_cast<int>(units);
  return {rank / copies, 1, copies, rank % copies};
}

Box unit_box(const Shape& global, int dim, int64_t unit_size, const UnitShare& share) {
  return cut_box(global, dim, share.begin * unit_size, share.count * unit_size);
}

VocabularyShare cut_vocabulary(int64_t vocabulary, int tp, int rank) {
  TRANSXSSM_CHECK(vocabulary >= 1 && rank >= 0 && rank < tp, "vocabulary {}, tp rank {} of {}", vocabulary,
                  rank, tp);
  const int64_t padded = (vocabulary + tp - 1) / tp;
  const int64_t begin = std::min(vocabulary, padded * rank);
  return {begin, std::min(vocabulary, begin + padded) - begin, padded};
}

}  // namespace transxssm
