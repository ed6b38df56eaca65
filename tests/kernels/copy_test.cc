#include "kernels/copy.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

template <class From, class To>
void check_copy(const Shape& shape, int64_t padding) {
  Stream stream = test_stream(2);
  const OwnedTensor from = random_normal<From>(shape, 1, 1, 0, padding), to = filled<To>(shape, 99, padding);
  run_and_wait(stream, Copy{.from = from, .to = to});
  EXPECT_TRUE(same_bits(to, converted<To>(from))) << shape.to_string();
  EXPECT_TRUE(to.padding_intact());
}

TEST(Copy, AnyShapeAndStride) {
  for (const Shape& shape : {Shape{1}, {65}, {20001}, {9, 7}, {3, 704}, {2, 3, 5}, {2, 2, 3, 1, 17}})
    for (int64_t padding : {0, 3})
      for_dtypes<float, double, BFloat16>([&](auto type) {
        using T = decltype(type);
        check_copy<T, T>(shape, padding);
        if constexpr (sizeof(T) == 2)
          check_copy<float, T>(shape, padding), check_copy<T, float>(shape, padding);
      });
}

TEST(Copy, DimsInAnotherOrder) {
  Stream stream = test_stream(2);
  const OwnedTensor from = random_normal<float>({4, 5, 24}, 1), to = zeros<BFloat16>({5, 4, 24});
  run_and_wait(stream, Copy{.from = from.view().transpose(0, 1), .to = to});
  EXPECT_TRUE(same_bits(to, converted<BFloat16>(from.view().transpose(0, 1))));
  const Tensor half = to.view().slice(2, 8, 8);
  run_and_wait(stream, Copy{.from = half, .to = from.view().transpose(0, 1).slice(2, 16, 8)});
  EXPECT_TRUE(same_bits(converted<float>(half), from.view().transpose(0, 1).slice(2, 16, 8)));
}

TEST(Copy, OtherTypesAreCopiedAsTheyAre) {
  Stream stream = test_stream();
  const OwnedTensor integers = random_integers<int32_t>({3, 7}, 1, -100, 100), to = zeros<int32_t>({3, 7});
  run_and_wait(stream, Copy{.from = integers, .to = to});
  EXPECT_TRUE(same_bits(integers, to));
  run_and_wait(stream, Copy{.from = zeros<float>({0, 4}), .to = zeros<BFloat16>({0, 4})});
  EXPECT_THROW(run(stream, Copy{.from = integers, .to = zeros<float>({3, 7})}), InternalError);
  EXPECT_THROW(run(stream, Copy{.from = integers, .to = zeros<int32_t>({7, 3})}), InternalError);
}

// Every bf16 as it is, the numbers half way to its neighbour and those next to them, and every kind of NaN.
TEST(Copy, RoundsToNearestEven) {
  Stream stream = test_stream(2);
  const int64_t count = 65536 * 8;
  const OwnedTensor from = zeros<float>({count}), to = zeros<BFloat16>({count}), back = zeros<float>({count});
  auto* data = from.view().data<float>();
  const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x4000, 0xc000};
  for (int64_t i = 0; i < count; ++i)
    data[i] = std::bit_cast<float>(static_cast<uint32_t>(i / 8) << 16 | low[i % 8]);
  run_and_wait(stream, Copy{.from = from, .to = to});
  run_and_wait(stream, Copy{.from = to, .to = back});
  const auto* rounded = to.view().data<BFloat16>();
  const auto* widened = back.view().data<float>();
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(data[i])) {
      wrong += !std::isnan(to_float(rounded[i])) || !std::isnan(widened[i]);
      continue;
    }
    wrong += rounded[i].bits != to_bfloat16(data[i]).bits;
    wrong += std::bit_cast<uint32_t>(widened[i]) != static_cast<uint32_t>(rounded[i].bits) << 16;
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace transxssm
