#include "kernels/residual.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

template <class T>
void check_forward(int64_t width, bool learned, int64_t padding) {
  Stream stream(2);
  const int64_t tokens = 9;
  const OwnedTensor x = random_normal<T>({tokens, width}, 1, 1, 0, padding),
                    weight = random_normal<T>({width}, 2);
  const OwnedTensor branch = random_normal<T>({tokens, width}, 3, 1, 0, padding),
                    y = zeros<T>({tokens, width}, padding);
  ResidualForward args{.x = x, .branch = branch, .weight = {}, .y = y};
  if (learned) args.weight = weight;
  run(stream, args);
  std::vector<double> expected;
  for (int64_t i = 0; i < tokens * width; ++i)
    expected.push_back((learned ? weight[i % width] : 1) * x[i] + branch[i]);
  EXPECT_LT(relative_error(y, expected), sizeof(T) == 4 ? 2e-7 : 1e-15);
  EXPECT_TRUE(y.padding_intact());
  args.y = branch;
  run(stream, args);
  EXPECT_TRUE(same_bits(branch, y)) << "in place of the branch";
}

TEST(Residual, ForwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (bool learned : {false, true})
      for (int64_t padding : {0, 3}) {
        check_forward<float>(width, learned, padding);
        check_forward<double>(width, learned, padding);
      }
}

TEST(Residual, BackwardIsTheGradient) {
  Stream stream(2);
  for (auto [tokens, width] : {std::pair<int64_t, int64_t>{70, 7}, {3, 65}})
    for (bool learned : {false, true}) {
      const Shape shape{tokens, width};
      const OwnedTensor x = random_normal<double>(shape, 1, 1, 0, 2),
                        weight = random_normal<double>({width}, 2);
      const OwnedTensor branch = random_normal<double>(shape, 3), y = zeros<double>(shape);
      const OwnedTensor dy = random_normal<double>(shape, 4, 1, 0, 1), dx = zeros<double>(shape, 1);
      const OwnedTensor d_weight = zeros<double>({width});
      ResidualForward forward{.x = x, .branch = branch, .weight = {}, .y = y};
      ResidualBackward backward{.dy = dy, .x = x, .weight = {}, .dx = dx, .d_weight = {}};
      if (learned) forward.weight = backward.weight = weight, backward.d_weight = d_weight;
      run(stream, backward);
      auto f = [&] {
        run(stream, forward);
        return dot(y, dy);
      };
      EXPECT_LT(gradcheck(f, x, dx), 1e-7);
      if (!learned) continue;
      EXPECT_LT(gradcheck(f, weight, d_weight), 1e-7);
      const OwnedTensor once = clone(d_weight);
      run(stream, backward);
      for (int64_t i = 0; i < width; ++i)
        EXPECT_NEAR(d_weight[i], 2 * once[i], 1e-12) << "weights accumulate";
    }
}

TEST(Residual, AnyNumberOfThreadsGivesTheSameBits) {
  std::vector<OwnedTensor> results;
  for (int num_threads : {1, 2, 3}) {
    Stream stream(num_threads);
    const OwnedTensor x = random_normal<float>({500, 33}, 1), dy = random_normal<float>({500, 33}, 2);
    const OwnedTensor dx = zeros<float>({500, 33});
    results.push_back(random_normal<float>({33}, 3));
    run(stream, ResidualBackward{.dy = dy, .x = x, .weight = {}, .dx = dx, .d_weight = results.back()});
    EXPECT_TRUE(same_bits(results.front(), results.back()));
    EXPECT_TRUE(same_bits(dx, dy));
  }
}

}  // namespace
}  // namespace transxssm
