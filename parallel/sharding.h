// Which part of a logical tensor a rank holds: boxes over global shapes, and the cuts of heads, groups, FFN
// width and vocabulary over the tp axis.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/tensor.h"

namespace transxssm {

// A rectangular part of a logical global shape. A box without elements is empty.
struct Box {
  Shape offset;
  Shape extent;
  bool operator==(const Box&) const = default;
  std::string to_string() const;  // "[0:4, 128:256]"
};

// All of `global`.
Box whole_box(const Shape& global);
// Indices [begin, begin + count) of one dim, all of the others. They must lie inside.
Box cut_box(const Shape& global, int dim, int64_t begin, int64_t count);
bool is_inside(const Box& box, const Shape& global);

// The units (heads, groups, channels) of one tp rank. Where there are fewer units than ranks, num_copies
// consecutive ranks hold the same unit; a gradient is then summed over those (Mesh::tp_share(num_copies)).
struct UnitShare {
  int64_t begin = 0;
  int64_t count = 0;
  int num_copies = 1;
  int copy = 0;  // this rank's place among them; copy 0 is the owner, which counts in norms and saves
};

// Empty where `units` can be cut over tp ranks; otherwise a sentence that names the legal values of tp. With
// `may_share`, tp may also be a multiple of `units`.
std::string tp_error(std::string_view name, int64_t units, int tp, bool may_share);

// The share of tp rank `rank`. Throws UsageError with tp_error's sentence where the cut is not legal.
UnitShare cut_units(std::string_view name, int64_t units, int tp, int rank, bool may_share);
// The box of a share in a dim of units x unit_size elements.
Box unit_box(const Shape& global, int dim, int64_t unit_size, const UnitShare& share);

// The vocabulary need not divide by tp: every rank has room for ceil(V / tp) rows, of which `count` are
// logical; the last ranks have fewer or none.
struct VocabularyShare {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t padded = 0;
};
VocabularyShare cut_vocabulary(int64_t vocabulary, int tp, int rank);

}  // namespace transxssm
