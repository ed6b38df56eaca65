#include "runtime/data/batch.h"

namespace transxssm {

Batch Batch::carve(Carver& carver, int64_t rows, int64_t tokens) {
  const Shape shape = {rows, tokens};
  Batch batch;
  for (Tensor* field : {&batch.input, &batch.target, &batch.position, &batch.document})
    *field = carver.take(DType::i32, shape);
  batch.valid = carver.take(DType::u8, shape);
  return batch;
}

Batch Batch::row_range(int64_t begin, int64_t count) const {
  return {input.slice(0, begin, count), target.slice(0, begin, count), position.slice(0, begin, count),
          document.slice(0, begin, count), valid.slice(0, begin, count)};
}

}  // namespace transxssm
