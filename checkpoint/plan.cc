#include "checkpoint/plan.h"

#include <algorithm>
#include <bit>
#include <utility>

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

// A corner of a box: bit d of `upper` says at which end of dim d.
struct Corner {
  uint32_t box = 0;
  uint32_t upper = 0;
};

int64_t coordinate(const Box& box, uint32_t upper, int dim) {
  return box.offset[dim] + ((upper >> dim & 1) != 0 ? box.extent[dim] : 0);
}

// Whether boxes without empty ones are a partition of `global`: the sum of their indicator functions is that
// of `global` just if the sums of their corners are, each corner with a sign that changes from one end of a
// dim to the other. Sorting the corners takes n log n, where comparing the boxes takes up to n^2.
bool is_partition(const Shape& global, std::span<const Box> boxes) {
  const int rank = global.rank();
  std::vector<Corner> corners;
  corners.reserve((boxes.size() + 1) << rank);
  const auto whole = static_cast<uint32_t>(boxes.size());  // `global`, counted the other way
  for (uint32_t i = 0; i <= whole; ++i)
    for (uint32_t upper = 0; upper < 1u << rank; ++upper) corners.push_back({i, upper});
  const Box all = whole_box(global);
  const auto at = [&](const Corner& corner, int dim) {
    return coordinate(corner.box == whole ? all : boxes[corner.box], corner.upper, dim);
  };
  const auto compare = [&](const Corner& a, const Corner& b) {
    for (int d = 0; d < rank; ++d)
      if (at(a, d) != at(b, d)) return at(a, d) < at(b, d) ? -1 : 1;
    return 0;
  };
  std::sort(corners.begin(), corners.end(),
            [&](const Corner& a, const Corner& b) { return compare(a, b) < 0; });
  for (size_t i = 0; i < corners.size();) {
    int64_t sum = 0;
    const size_t first = i;
    for (; i < corners.size() && compare(corners[first], corners[i]) == 0; ++i) {
      const bool even = std::popcount(corners[i].upper) % 2 == 0;
      sum += even == (corners[i].box == whole) ? -1 : 1;
    }
    if (sum != 0) return false;
  }
  return true;
}

// The first two boxes found that overlap. Gives up after so many comparisons that a hostile file takes
// seconds.
std::optional<std::pair<size_t, size_t>> find_overlap(std::span<const Box> boxes) {
  constexpr int64_t kMaxComparisons = 50'000'000;
  int64_t comparisons = 0;
  for (size_t i = 0; i < boxes.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      if (overlap(boxes[i], boxes[j])) return std::pair(j, i);
      if (++comparisons == kMaxComparisons) return std::nullopt;
    }
  return std::nullopt;
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
  if (is_partition(global, boxes)) return "";
  if (const auto both = find_overlap(boxes)) {
    const Box& a = boxes[both->first];
    const Box& b = boxes[both->second];
    return fmt::format("boxes of extent {} at {} and {} at {} overlap", a.extent.to_string(),
                       a.offset.to_string(), b.extent.to_string(), b.offset.to_string());
  }
  if (held != *total) return fmt::format("the boxes hold {} of {} elements", held, *total);
  return "the boxes overlap";
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
