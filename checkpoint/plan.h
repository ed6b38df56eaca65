// Which elements go where when boxes saved on one mesh are loaded on another. Pure: no files, no ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/sharding.h"
#include "runtime/tensor.h"

namespace transxssm {

inline constexpr size_t kMaxBoxesPerTensor = 200'000;

// Elements of a shape; nothing where a size is negative or elements of 8 bytes would not fit 63 bits.
std::optional<int64_t> checked_volume(const Shape& shape);

// Why the boxes are not a partition of `global` (one out of range, two that overlap, elements that none
// holds); empty where they are one.
std::string partition_problem(const Shape& global, std::span<const Box> boxes);

// `count` elements from element `source` of a saved box to element `target` of the wanted one, both
// row-major.
struct CopyRun {
  int64_t source = 0;
  int64_t target = 0;
  int64_t count = 0;
};

struct BoxCopy {
  size_t source = 0;          // index of the saved box
  std::vector<CopyRun> runs;  // ascending in both
};

// How `target` is filled from boxes that partition a shape it lies in: every element of it exactly once.
std::vector<BoxCopy> plan_copies(const Box& target, std::span<const Box> sources);

}  // namespace transxssm
