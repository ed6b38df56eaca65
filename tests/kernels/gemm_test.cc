#include "kernels/gemm.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

std::vector<double> definition(const Gemm& args, const std::vector<double>& before) {
  const int64_t m = args.c.size(0), n = args.c.size(1), k = args.a.size(args.transpose_a ? 0 : 1);
  const std::vector<double> a = values(args.a), b = values(args.b);
  std::vector<double> result(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = args.accumulate ? before[static_cast<size_t>(i * n + j)] : 0;
      for (int64_t l = 0; l < k; ++l)
        sum += a[static_cast<size_t>(args.transpose_a ? l * m + i : i * k + l)] *
               b[static_cast<size_t>(args.transpose_b ? j * k + l : l * n + j)];
      result[static_cast<size_t>(i * n + j)] = sum;
    }
  return result;
}

template <class T>
void check_product(int64_t m, int64_t n, int64_t k, int64_t padding, int num_threads) {
  Stream stream(num_threads);
  for (int flags = 0; flags < 8; ++flags) {
    const bool transpose_a = flags & 1, transpose_b = flags & 2, accumulate = flags & 4;
    const OwnedTensor a = random_normal<T>(transpose_a ? Shape{k, m} : Shape{m, k}, 1, 1, 0, padding);
    const OwnedTensor b = random_normal<T>(transpose_b ? Shape{n, k} : Shape{k, n}, 2, 1, 0, padding);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const OwnedTensor c =
        accumulate ? random_normal<T>({m, n}, 3, 1, 0, padding) : filled<T>({m, n}, nan, padding);
    const Gemm args{a, b, c, transpose_a, transpose_b, accumulate};
    const std::vector<double> expected = definition(args, values(c));
    run(stream, args);
    EXPECT_LT(relative_error(c, expected), sizeof(T) == 4 ? 2e-6 : 1e-14)
        << m << " x " << n << " x " << k << " flags " << flags;
    EXPECT_TRUE(c.padding_intact());
  }
}

TEST(Gemm, EqualsItsDefinition) {
  for (int num_threads : {1, 2})
    for (int64_t padding : {0, 5}) {
      for (auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                             {1, 65, 7},
                             {63, 1, 65},
                             {7, 65, 1},
                             {65, 63, 64},
                             {5, 300, 33},
                             {128, 64, 96}}) {
        check_product<float>(m, n, k, padding, num_threads);
        check_product<double>(m, n, k, padding, num_threads);
      }
    }
}

TEST(Gemm, EmptyDimensions) {
  Stream stream;
  for (bool accumulate : {false, true}) {
    const OwnedTensor a = zeros<float>({3, 0}), b = zeros<float>({0, 4}), c = filled<float>({3, 4}, 7, 2);
    run(stream, Gemm{.a = a, .b = b, .c = c, .accumulate = accumulate});
    EXPECT_EQ(values(c), std::vector<double>(12, accumulate ? 7.0 : 0.0)) << "an empty sum is zero";
    EXPECT_TRUE(c.padding_intact());
  }
  const OwnedTensor x = random_normal<float>({3, 4}, 1), none = zeros<float>({0, 4}),
                    out = zeros<float>({3, 0});
  run(stream, Gemm{.a = x, .b = none, .c = out, .transpose_b = true});
  const OwnedTensor weight = random_normal<float>({5, 4}, 1), no_rows = zeros<float>({0, 5});
  run(stream, Gemm{.a = none, .b = weight, .c = no_rows, .transpose_b = true});
}

TEST(Gemm, RowOfALargerTensor) {
  Stream stream;
  const OwnedTensor storage = random_normal<float>({4, 8, 16}, 1);
  const Tensor a = storage.view().slice(1, 3, 1).slice(0, 0, 1).reshape({1, 16});
  const Tensor last = storage.view().transpose(0, 1).select(0, 7);  // [4,16], rows 128 elements apart
  const OwnedTensor c = zeros<float>({1, 4});
  const Gemm args{.a = a, .b = last, .c = c, .transpose_b = true};
  const std::vector<double> expected = definition(args, values(c));
  run(stream, args);
  EXPECT_LT(relative_error(c, expected), 1e-6);
}

TEST(Gemm, RefusesWhatItCannotDo) {
  Stream stream;
  float element = 0;
  const int64_t huge = int64_t{1} << 31;
  const Tensor a(&element, DType::f32, {1, huge}), b(&element, DType::f32, {huge, 1}),
      c(&element, DType::f32, {1, 1});
  EXPECT_THROW(run(stream, Gemm{a, b, c}), InternalError);
  const OwnedTensor x = zeros<float>({2, 3}), y = zeros<float>({2, 3}), z = zeros<float>({2, 2});
  EXPECT_THROW(run(stream, Gemm{x, y, z}), InternalError) << "inner sizes differ";
  EXPECT_THROW(run(stream, Gemm{x, y.view().transpose(0, 1), z}), InternalError) << "stride in the last dim";
}

}  // namespace
}  // namespace transxssm
