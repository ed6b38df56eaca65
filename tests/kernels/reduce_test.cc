#include "kernels/reduce.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

TEST(Reduce, SumOfSquares) {
  Stream stream = test_stream(2);
  for (int64_t count : {1, 7, 63, 65, 704, 8192, 100001}) {
    const OwnedTensor x = random_normal<float>({count}, 1);
    double expected = 0;
    for (double v : values(x)) expected += v * v;
    for_dtypes<float, double>([&](auto type) {
      EXPECT_NEAR(sum_of_squares(stream, converted<decltype(type)>(x)), expected, 1e-12 * expected) << count;
    });
    const Tensor parts[] = {x, Tensor(), x};
    EXPECT_NEAR(sum_of_squares(stream, parts), 2 * expected, 1e-12 * expected) << "of several tensors";
  }
  EXPECT_EQ(sum_of_squares(stream, Tensor()), 0);
  EXPECT_EQ(sum_of_squares(stream, zeros<float>({0, 4})), 0);
  EXPECT_NEAR(sum_of_squares(stream, filled<float>({4}, 1e30)), 4e60, 1e54) << "in f64: no overflow";
  EXPECT_THROW(sum_of_squares(stream, zeros<float>({3, 4}, 1)), InternalError) << "not contiguous";
}

TEST(Reduce, AnyNumberOfThreadsGivesTheSameBits) {
  const OwnedTensor x = random_normal<float>({200003}, 1);
  Stream one = test_stream(1);
  const double expected = sum_of_squares(one, x);
  for (int num_threads : {2, 3, 7}) {
    Stream many = test_stream(num_threads);
    EXPECT_EQ(sum_of_squares(many, x), expected) << num_threads;
  }
}

TEST(Reduce, CountsWhatIsNotFinite) {
  Stream stream = test_stream(2);
  const double infinity = std::numeric_limits<double>::infinity(),
               nan = std::numeric_limits<double>::quiet_NaN();
  for_dtypes<float, double>([&](auto type) {
    const OwnedTensor x = random_normal<decltype(type)>({20001}, 1);
    EXPECT_EQ(count_not_finite(stream, x), 0);
    set(x, 0, nan), set(x, 9000, infinity), set(x, 20000, -infinity), set(x, 77, 1e-45), set(x, 78, 3e38);
    EXPECT_EQ(count_not_finite(stream, x), 3);
  });
  EXPECT_EQ(count_not_finite(stream, filled<float>({30000}, nan)), 30000);
  EXPECT_EQ(count_not_finite(stream, Tensor()), 0);
}

}  // namespace
}  // namespace transxssm
