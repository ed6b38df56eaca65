#include "model/rotary_table.h"

#include <cmath>

namespace transxssm {

RotaryTable RotaryTable::carve(Carver& carver, int64_t positions, int64_t width) {
  const Tensor cos = carver.take(DType::f32, {positions, width / 2});
  return {cos, carver.take(DType::f32, {positions, width / 2})};
}

void RotaryTable::fill(double base) const {
  const int64_t half = cos.size(1);
  for (int64_t j = 0; j < half; ++j) {
    const double theta = std::pow(base, -static_cast<double>(j) / static_cast<double>(half));
    for (int64_t i = 0; i < cos.size(0); ++i) {
      cos.at<float>({i, j}) = static_cast<float>(std::cos(static_cast<double>(i) * theta));
      sin.at<float>({i, j}) = static_cast<float>(std::sin(static_cast<double>(i) * theta));
    }
  }
}

}  // namespace transxssm
