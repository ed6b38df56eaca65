// The operations under each instruction set that the SIMD code is compiled for and this CPU has.
#include <gtest/gtest.h>

#include "kernels/copy.h"
#include "kernels/cross_entropy.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/support/tensors.h"

namespace transxssm {
namespace {

TEST(InstructionSets, AllRoundAlike) {
  Stream stream;
  const int64_t count = 20011;
  const OwnedTensor from = random_normal<float>({count}, 1, 1e-38), to = zeros<BFloat16>({count});
  set(from, 7, std::numeric_limits<double>::quiet_NaN()), set(from, 8, 3.4e38), set(from, 9, -1e-45);
  const OwnedTensor expected = converted<BFloat16>(from);
  for_instruction_sets([&] {
    std::fill_n(to.view().data<BFloat16>(), count, BFloat16{});
    run(stream, Copy{.from = from, .to = to});
    EXPECT_TRUE(same_bits(to, expected));
  });
}

template <class T>
void check_operations() {
  Stream stream;
  const Shape shape{5, 135};
  std::vector<std::vector<double>> first;
  for_instruction_sets([&] {
    const OwnedTensor x = random_normal<T>(shape, 1, 3), branch = random_normal<T>(shape, 2),
                      sum = zeros<T>(shape), y = zeros<T>(shape), weight = random_normal<Wide<T>>({135}, 3),
                      rstd = zeros<Wide<T>>({5});
    const OwnedTensor silu = zeros<T>(shape), d_gate = zeros<T>(shape), d_up = zeros<T>(shape);
    const OwnedTensor targets = random_integers<int32_t>({5}, 4, 0, 135), valid = filled<uint8_t>({5}, 1);
    const OwnedTensor max = zeros<Wide<T>>({5}), total = zeros<Wide<T>>({5}), logit = zeros<Wide<T>>({5});
    run(stream, RmsNormForward{.x = x, .branch = branch, .sum = sum, .weight = weight, .y = y, .rstd = rstd});
    run(stream, SwigluForward{x, branch, silu});
    run(stream, SwigluBackward{x, branch, y, d_gate, d_up, {}});
    run(stream, CrossEntropyStatistics{x, targets, max, total, logit});
    run(stream, CrossEntropyBackward{x, targets, valid, max, total, filled<double>({1}, 0.5)});
    std::vector<std::vector<double>> got;
    for (const Tensor& tensor : {sum.view(), y.view(), silu.view(), d_gate.view(), d_up.view(), x.view()})
      got.push_back(values(tensor));
    got.push_back(values(total));
    if (first.empty()) first = got;
    // Two roundings, which may fall to different sides.
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_LT(relative_error(got[i], first[i]), 2 * tolerance<T>(2e-6, 1e-14)) << i;
  });
}

TEST(InstructionSets, AllGiveTheSameResults) {
  check_operations<float>();
  check_operations<double>();
  check_operations<BFloat16>();
}

}  // namespace
}  // namespace transxssm
