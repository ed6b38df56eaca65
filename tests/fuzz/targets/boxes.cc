// Boxes of a tensor of a few hundred elements: partition_problem and plan_copies against counting them one by
// one. Bytes: rank, sizes, then boxes of offsets and extents; the first box is the one to be filled.
#include <algorithm>
#include <numeric>

#include "checkpoint/plan.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {
namespace {

// Row-major numbers of the elements of a box of `global`, in order.
std::vector<int64_t> elements(const Box& box, const Shape& global) {
  std::vector<int64_t> list(static_cast<size_t>(box.extent.num_elements()));
  for (size_t i = 0; i < list.size(); ++i) {
    auto rest = static_cast<int64_t>(i);
    int64_t stride = 1;
    for (int d = global.rank() - 1; d >= 0; --d) {
      list[i] += (rest % box.extent[d] + box.offset[d]) * stride;
      rest /= box.extent[d];
      stride *= global[d];
    }
  }
  return list;
}

}  // namespace

FUZZ_TARGET(boxes, 512) {
  fuzz::Bytes bytes(input);
  const int rank = bytes.byte() % 4;
  Shape global;
  for (int d = 0; d < rank; ++d) global.append(bytes.byte() % 8);
  std::vector<Box> boxes;
  while (!bytes.empty() && boxes.size() < 64) {
    Box& box = boxes.emplace_back();
    for (int d = 0; d < rank; ++d) {
      const uint8_t both = bytes.byte();
      box.offset.append(both >> 4);
      box.extent.append(both & 15);
    }
    if (rank == 0) bytes.byte();
  }
  if (boxes.empty()) return;
  const Box target = boxes.front();
  boxes.erase(boxes.begin());

  std::vector<int> held(static_cast<size_t>(global.num_elements()));
  bool inside = true;
  for (const Box& box : boxes) {
    inside = inside && is_inside(box, global) && box.extent.num_elements() > 0;
    if (!inside) break;
    for (int64_t element : elements(box, global)) ++held[static_cast<size_t>(element)];
  }
  const bool whole = inside && std::all_of(held.begin(), held.end(), [](int times) { return times == 1; });
  fuzz::expect(partition_problem(global, boxes).empty() == whole,
               whole ? "a partition is refused" : "what is no partition passes");
  if (!whole || !is_inside(target, global)) return;

  const std::vector<int64_t> wanted = elements(target, global);
  std::vector<int64_t> got(wanted.size(), -1);
  for (const BoxCopy& copy : plan_copies(target, boxes)) {
    const std::vector<int64_t> source = elements(boxes[copy.source], global);
    for (const CopyRun& run : copy.runs)
      for (int64_t i = 0; i < run.count; ++i)
        got.at(static_cast<size_t>(run.target + i)) = source.at(static_cast<size_t>(run.source + i));
  }
  fuzz::expect(got == wanted, "a copy puts elements in other places");
}

}  // namespace transxssm
