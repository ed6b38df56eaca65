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

// With the memory that the CPU asks for, or none.
struct Packed {
  explicit Packed(const Gemm& args) {
    const int64_t n = args.c.size(1), k = args.b.size(args.transpose_b ? 1 : 0);
    bytes = zeros<uint8_t>({packed_bytes(Device{}, args.b.dtype(), k, n)});
    if (bytes.view().num_elements() > 0) matrix.memory = bytes;
  }
  OwnedTensor bytes;
  PackedMatrix matrix;
};

// T: of a and b, C: of c.
template <class T, class C>
void check_product(int64_t m, int64_t n, int64_t k, int64_t padding, int num_threads,
                   const std::vector<int>& cases = {0, 1, 2, 3, 4, 5, 6, 7}) {
  Stream stream = test_stream(num_threads);
  for (const int flags : cases) {
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
    if (transpose_a) continue;
    const OwnedTensor again =
        accumulate ? random_normal<C>({m, n}, 3, 1, 0, padding) : filled<C>({m, n}, nan, padding);
    Packed packed(args);
    Gemm with_copy = args;
    with_copy.c = again;
    with_copy.packed_b = &packed.matrix;
    run_and_wait(stream, with_copy);
    EXPECT_LT(relative_error(again, expected), tolerance<C>(2e-6, 1e-14))
        << "packed " << m << " x " << n << " x " << k << " flags " << flags;
    EXPECT_TRUE(again.padding_intact());
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

// Several blocks of every dimension, the last of each neither whole nor even.
TEST(Gemm, SeveralBlocks) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    check_product<T, T>(140, 290, 777, 3, 1, {0, 2});
    check_product<T, float>(140, 41, 777, 0, 2, {4, 6});
    check_product<T, float>(405, 39, 301, 1, 1, {1, 5});
    check_product<T, float>(39, 810, 301, 0, 2, {1, 5});
  });
}

// What lies behind a row of an odd length, and behind the last row, is not a number.
TEST(Gemm, ReadsNothingBehindItsOperands) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    Stream stream = test_stream();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const OwnedTensor storage = filled<T>({40, 80}, nan), b_storage = filled<T>({80, 40}, nan);
    const Tensor a = storage.view().slice(0, 0, 21).slice(1, 0, 33),
                 b = b_storage.view().slice(0, 0, 33).slice(1, 0, 19);
    for (const Tensor& tensor : {a, b})
      for (int64_t i = 0; i < tensor.num_elements(); ++i) set(tensor, i, static_cast<double>(i % 7) - 3);
    const OwnedTensor c = zeros<Wide<T>>({21, 19}), d = zeros<Wide<T>>({33, 19});
    const Gemm forward{.a = a, .b = b, .c = c};
    Packed packed(forward);
    Gemm with_copy = forward;
    with_copy.packed_b = &packed.matrix;
    run_and_wait(stream, with_copy);
    EXPECT_LT(relative_error(c, definition(forward, {})), 1e-6);
    const OwnedTensor e = random_normal<T>({21, 19}, 1);
    const Gemm gradient{.a = a, .b = e, .c = d, .transpose_a = true};
    run_and_wait(stream, gradient);
    EXPECT_LT(relative_error(d, definition(gradient, {})), 1e-6);
  });
}

// A copy is formed again when it is said to be stale, and only then.
TEST(Gemm, StaleCopy) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    Stream stream = test_stream(2);
    const OwnedTensor a = random_normal<T>({70, 50}, 1), b = random_normal<T>({40, 50}, 2),
                      c = zeros<Wide<T>>({70, 40});
    Gemm args{.a = a, .b = b, .c = c, .transpose_b = true};
    Packed packed(args);
    if (packed.matrix.memory.empty()) return;
    args.packed_b = &packed.matrix;
    run_and_wait(stream, args);
    EXPECT_FALSE(packed.matrix.stale);
    const std::vector<double> first = definition(args, {});
    copy(random_normal<T>({40, 50}, 3).view(), b.view());
    run_and_wait(stream, args);
    EXPECT_LT(relative_error(c, first), 1e-6) << "formed without need";
    packed.matrix.stale = true;
    run_and_wait(stream, args);
    EXPECT_LT(relative_error(c, definition(args, {})), 1e-6);
  });
}

// With copies, and for gradients of weights, bits do not depend on the number of threads.
TEST(Gemm, SameBitsForAnyNumberOfThreads) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    const OwnedTensor x = random_normal<T>({300, 900}, 1), y = random_normal<T>({300, 430}, 2),
                      weight = random_normal<T>({430, 900}, 3);
    OwnedTensor forward[2], gradient[2];
    bool packs = false;
    for (int i = 0; i < 2; ++i) {
      Stream stream = test_stream(1 + i);
      forward[i] = zeros<T>({300, 430});
      gradient[i] = random_normal<float>({430, 900}, 4);
      Gemm args{.a = x, .b = weight, .c = forward[i], .transpose_b = true};
      Packed packed(args);
      packs = !packed.matrix.memory.empty();
      args.packed_b = &packed.matrix;
      run_and_wait(stream, args);
      run_and_wait(stream, Gemm{.a = y, .b = x, .c = gradient[i], .transpose_a = true, .accumulate = true});
    }
    if (!packs) return;
    EXPECT_TRUE(same_bits(forward[0], forward[1]));
    EXPECT_TRUE(same_bits(gradient[0], gradient[1]));
  });
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
  PackedMatrix packed;
  EXPECT_THROW(run(stream, Gemm{.a = z, .b = z, .c = z, .transpose_a = true, .packed_b = &packed}),
               InternalError);
  const OwnedTensor byte = zeros<uint8_t>({1});
  packed.memory = byte;
  EXPECT_THROW(run(stream, Gemm{.a = z, .b = z, .c = z, .packed_b = &packed}), InternalError);
}

}  // namespace
}  // namespace transxssm
