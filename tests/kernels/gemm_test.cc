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

// T: of a and b, C: of c.
template <class T, class C>
void check_product(int64_t m, int64_t n, int64_t k, int64_t padding, int num_threads) {
  Stream stream = test_stream(num_threads);
  for (int flags = 0; flags < 8; ++flags) {
    const bool transpose_a = flags & 1, transpose_b = flags & 2, accumulate = flags & 4;
    if (accumulate && std::is_same_v<C, BFloat16>) continue;
    const OwnedTensor a = random_normal<T>(transpose_a ? Shape{k, m} : Shape{m, k}, 1, 1, 0, padding);
    const OwnedTensor b = random_normal<T>(transpose_b ? Shape{n, k} : Shape{k, n}, 2, 1, 0, padding);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const OwnedTensor c =
        accumulate ? random_normal<C>({m, n}, 3, 1, 0, padding) : filled<C>({m, n}, nan, padding);
    const Gemm args{a, b, c, transpose_a, transpose_b, accumulate};
    const std::vector<double> expected = definition(args, values(c));
    run_and_wait(stream, args);
    EXPECT_LT(relative_error(c, expected), tolerance<C>(2e-6, 1e-14))
        << m << " x " << n << " x " << k << " flags " << flags;
    EXPECT_TRUE(c.padding_intact());
  }
}

void check_products(int64_t m, int64_t n, int64_t k, int64_t padding, int num_threads) {
  for_dtypes<float, double, BFloat16>([&](auto type) {
    using T = decltype(type);
    check_product<T, T>(m, n, k, padding, num_threads);
    if constexpr (sizeof(T) == 2) check_product<T, float>(m, n, k, padding, num_threads);
  });
}

TEST(Gemm, EqualsItsDefinition) {
  for (auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                         {1, 65, 7},
                         {63, 1, 65},
                         {7, 65, 1},
                         {65, 63, 64},
                         {5, 300, 33},
                         {128, 64, 96}}) {
    check_products(m, n, k, 0, 1);
    check_products(m, n, k, 5, 2);
  }
}

// Long enough for operands to be rearranged first, or to be taken in several blocks.
TEST(Gemm, LongDimensions) {
  check_products(1100, 24, 17, 3, 2);
  check_products(9, 530, 24, 0, 2);
  check_products(9, 24, 1100, 3, 2);
}

// The same shapes again take what the first call prepared, with other tensors.
TEST(Gemm, SameShapeOtherTensors) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    Stream stream = test_stream();
    for (uint64_t seed : {1, 2, 3}) {
      const OwnedTensor a = random_normal<T>({1200, 16}, seed), b = random_normal<T>({24, 16}, seed + 10),
                        c = zeros<T>({1200, 24});
      const Gemm args{.a = a, .b = b, .c = c, .transpose_b = true};
      run_and_wait(stream, args);
      EXPECT_LT(relative_error(c, definition(args, {})), tolerance<T>(2e-6, 0)) << seed;
    }
  });
}

TEST(Gemm, SameBitsFromRunToRun) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    Stream stream = test_stream(2);
    const OwnedTensor a = random_normal<T>({700, 130}, 1), b = random_normal<T>({700, 90}, 2);
    const OwnedTensor once = zeros<float>({130, 90}), again = zeros<float>({130, 90});
    run_and_wait(stream, Gemm{.a = a, .b = b, .c = once, .transpose_a = true});
    run_and_wait(stream, Gemm{.a = a, .b = b, .c = again, .transpose_a = true});
    EXPECT_TRUE(same_bits(once, again));
  });
}

template <class T>
void check_empty_dimensions() {
  Stream stream = test_stream();
  for (bool accumulate : {false, true}) {
    const OwnedTensor a = zeros<T>({3, 0}), b = zeros<T>({0, 4}), c = filled<Wide<T>>({3, 4}, 7, 2);
    run_and_wait(stream, Gemm{.a = a, .b = b, .c = c, .accumulate = accumulate});
    EXPECT_EQ(values(c), std::vector<double>(12, accumulate ? 7.0 : 0.0)) << "an empty sum is zero";
    EXPECT_TRUE(c.padding_intact());
  }
  const OwnedTensor x = random_normal<T>({3, 4}, 1), none = zeros<T>({0, 4}), out = zeros<T>({3, 0});
  run(stream, Gemm{.a = x, .b = none, .c = out, .transpose_b = true});
  const OwnedTensor weight = random_normal<T>({5, 4}, 1), no_rows = zeros<T>({0, 5});
  run_and_wait(stream, Gemm{.a = none, .b = weight, .c = no_rows, .transpose_b = true});
}

TEST(Gemm, EmptyDimensions) {
  for_dtypes<float, BFloat16>([](auto type) { check_empty_dimensions<decltype(type)>(); });
}

TEST(Gemm, RowOfALargerTensor) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    Stream stream = test_stream();
    const OwnedTensor storage = random_normal<T>({4, 8, 16}, 1);
    const Tensor a = storage.view().slice(1, 3, 1).slice(0, 0, 1).reshape({1, 16});
    const Tensor last = storage.view().transpose(0, 1).select(0, 7);  // [4,16], rows 128 elements apart
    const OwnedTensor c = zeros<Wide<T>>({1, 4});
    const Gemm args{.a = a, .b = last, .c = c, .transpose_b = true};
    const std::vector<double> expected = definition(args, values(c));
    run_and_wait(stream, args);
    EXPECT_LT(relative_error(c, expected), 1e-6);
  });
}

TEST(Gemm, RefusesWhatItCannotDo) {
  Stream stream = test_stream();
  float element = 0;
  const int64_t huge = int64_t{1} << 31;
  const Tensor a(&element, DType::f32, {1, huge}), b(&element, DType::f32, {huge, 1}),
      c(&element, DType::f32, {1, 1});
  EXPECT_THROW(run(stream, Gemm{a, b, c}), InternalError);
  const OwnedTensor x = zeros<float>({2, 3}), y = zeros<float>({2, 3}), z = zeros<float>({2, 2});
  EXPECT_THROW(run(stream, Gemm{x, y, z}), InternalError) << "inner sizes differ";
  EXPECT_THROW(run(stream, Gemm{x, y.view().transpose(0, 1), z}), InternalError) << "stride in the last dim";
  const OwnedTensor half = zeros<BFloat16>({2, 2});
  EXPECT_THROW(run(stream, Gemm{.a = half, .b = half, .c = half, .accumulate = true}), InternalError);
  EXPECT_THROW(run(stream, Gemm{z, z, half}), InternalError);
  EXPECT_THROW(run(stream, Gemm{half, z, z}), InternalError);
}

}  // namespace
}  // namespace transxssm
