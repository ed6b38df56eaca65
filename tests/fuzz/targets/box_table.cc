// A box table of a data file: four bytes say how long that file is, the table follows.
#include "checkpoint/manifest.h"
#include "checkpoint/plan.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(box_table, 1024) {
  static const Manifest manifest = [] {
    Manifest made;
    for (const auto& [name, shape] :
         {std::pair<const char*, Shape>("a", {6, 4}), std::pair<const char*, Shape>("b", {4096}),
          std::pair<const char*, Shape>("c", {})}) {
      TensorInfo& info = made.tensors.emplace_back();
      info.name = name;
      info.global_shape = shape;
    }
    made.tensors[1].dtype = DType::bf16;
    return made;
  }();
  fuzz::Bytes bytes(input);
  const auto data_bytes = static_cast<int64_t>(bytes.number(4));
  const BoxTable table = decode_table(std::string(bytes.rest()), "table.pb", manifest, data_bytes);
  const std::string again = encode_table(table);
  fuzz::expect(encode_table(decode_table(again, "again", manifest, data_bytes)) == again,
               "a box table written again says something else");
  std::vector<Box> boxes;
  for (const StoredBox& box : table.boxes)
    if (box.tensor == 0) boxes.push_back(box.box);
  partition_problem(manifest.tensors[0].global_shape, boxes);
}

}  // namespace transxssm
