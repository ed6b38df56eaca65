#include "checkpoint/plan.h"

#include <algorithm>
#include <numeric>

#include "runtime/error.h"

namespace transxssm {
namespace {

bool lies_inside(const Box& box, const Shape& global) {
  if (box.offset.rank() != global.rank() || box.extent.rank() != global.rank()) return false;
  for (int d = 0; d < global.rank(); ++d) {
    if (box.offset[d] < 0 || box.extent[d] < 0 || box.extent[d] > global[d]) return false;
    if (box.offset[d] > global[d] - box.extent[d]) return false;
  }
  return true;
}

bool overlap(const Box& a, const Box& b) {
  for (int d = 0; d < a.offset.rank(); ++d) {
    if (a.offset[d] >= b.offset[d] + b.extent[d] || b.offset[d] >= a.offset[d] + a.extent[d]) return false;
  }
  return true;
}

// The dim along which the boxes start in the most places: a sweep along it holds the fewest open boxes.
int sweep_dim(std::span<const Box> boxes, int rank) {
  int best = 0;
  size_t most = 0;
  for (int d = 0; d < rank; ++d) {
    std::vector<int64_t> starts;
    for (const Box& box : boxes) starts.push_back(box.offset[d]);
    std::sort(starts.begin(), starts.end());
    const auto distinct = static_cast<size_t>(std::unique(starts.begin(), starts.end()) - starts.begin());
    if (distinct > most) {
      most = distinct;
      best = d;
    }
  }
  return best;
}

// Runs of the intersection [begin, begin + extent) of two boxes. Dims that both boxes hold whole, from the
// innermost outwards, make one run with the dim before them.
std::vector<CopyRun> intersection_runs(const Box& source, const Box& target, const Shape& begin,
                                       const Shape& extent) {
  const int rank = extent.rank();
  int64_t count = 1;
  int outer = rank;  // dims [0, outer) are stepped through
  for (bool whole = true; outer > 0 && whole;) {
    --outer;
    count *= extent[outer];
    whole = extent[outer] == source.extent[outer] && extent[outer] == target.extent[outer];
  }
  int64_t num_runs = 1;
  for (int d = 0; d < outer; ++d) num_runs *= extent[d];
  std::vector<CopyRun> runs;
  runs.reserve(static_cast<size_t>(num_runs));
  for (int64_t run = 0; run < num_runs; ++run) {
    Shape index = begin;
    int64_t rest = run;
    for (int d = outer - 1; d >= 0; --d) {
      index[d] += rest % extent[d];
      rest /= extent[d];
    }
    int64_t from = 0;
    int64_t to = 0;
    for (int d = 0; d < rank; ++d) {
      from = from * source.extent[d] + index[d] - source.offset[d];
      to = to * target.extent[d] + index[d] - target.offset[d];
    }
    runs.push_back({from, to, count});
  }
  return runs;
}

}  // namespace

std::optional<int64_t> checked_volume(const Shape& shape) {
  bool zero = false;
  int64_t volume = 8;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] < 0) return std::nullopt;
    zero |= shape[d] == 0;
    // A zero elsewhere does not excuse sizes whose strides overflow.
    if (__builtin_mul_overflow(volume, std::max<int64_t>(shape[d], 1), &volume)) return std::nullopt;
  }
  return zero ? 0 : volume / 8;
}

std::string partition_problem(const Shape& global, std::span<const Box> boxes) {
  const auto total = checked_volume(global);
  if (!total) return fmt::format("global shape {} is too large", global.to_string());
  if (boxes.size() > kMaxBoxesPerTensor) return fmt::format("{} boxes are too many", boxes.size());
  int64_t held = 0;
  for (const Box& box : boxes) {
    if (!lies_inside(box, global)) {
      return fmt::format("box of extent {} at {} lies outside of shape {}", box.extent.to_string(),
                         box.offset.to_string(), global.to_string());
    }
    const int64_t volume = checked_volume(box.extent).value();
    if (volume == 0) return fmt::format("a box of extent {} holds nothing", box.extent.to_string());
    if (__builtin_add_overflow(held, volume, &held)) return "the boxes hold too many elements";
  }
  const int dim = sweep_dim(boxes, global.rank());
  std::vector<size_t> order(boxes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto start = [&](size_t i) { return global.rank() == 0 ? 0 : boxes[i].offset[dim]; };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return start(a) < start(b); });
  std::vector<size_t> open;
  for (size_t i : order) {
    std::erase_if(open, [&](size_t j) {
      return global.rank() > 0 && boxes[j].offset[dim] + boxes[j].extent[dim] <= start(i);
    });
    for (size_t j : open) {
      if (overlap(boxes[i], boxes[j])) {
        return fmt::format("boxes of extent {} at {} and {} at {} overlap", boxes[j].extent.to_string(),
                           boxes[j].offset.to_string(), boxes[i].extent.to_string(),
                           boxes[i].offset.to_string());
      }
    }
    open.push_back(i);
  }
  if (held != *total) return fmt::format("the boxes hold {} of {} elements", held, *total);
  return "";
}

std::vector<BoxCopy> plan_copies(const Box& target, std::span<const Box> sources) {
  const int rank = target.extent.rank();
  std::vector<BoxCopy> copies;
  int64_t covered = 0;
  const int64_t wanted = checked_volume(target.extent).value();
  for (size_t i = 0; i < sources.size() && covered < wanted; ++i) {
    if (!overlap(sources[i], target)) continue;
    Shape begin = target.offset;
    Shape extent = target.extent;
    for (int d = 0; d < rank; ++d) {
      begin[d] = std::max(target.offset[d], sources[i].offset[d]);
      extent[d] = std::min(target.offset[d] + target.extent[d], sources[i].offset[d] + sources[i].extent[d]) -
                  begin[d];
    }
    copies.push_back({i, intersection_runs(sources[i], target, begin, extent)});
    covered += extent.num_elements();
  }
  TRANSXSSM_CHECK(covered == wanted, "saved boxes cover {} of {} elements", covered, wanted);
  return copies;
}

}  // namespace transxssm
