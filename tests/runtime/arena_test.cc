#include "runtime/arena.h"

#include <gtest/gtest.h>

#include "runtime/stream.h"

namespace transxssm {
namespace {

TEST(Arena, TensorsTakeWhatIsCounted) {
  const Shape shapes[] = {{3}, {0}, {16}, {5, 7}};
  Carver count;
  int64_t bytes = 0;
  for (const Shape& shape : shapes) {
    EXPECT_TRUE(count.take(DType::f32, shape).empty());
    bytes += carved_bytes(DType::f32, shape);
  }
  EXPECT_EQ(count.used(), bytes);
  const Arena arena(bytes);
  Carver carver = arena.carver();
  const std::byte* end = nullptr;
  for (const Shape& shape : shapes) {
    const Tensor tensor = carver.take(DType::f32, shape);
    const auto* begin = static_cast<const std::byte*>(tensor.raw());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(begin) % kAlignment, 0u);
    EXPECT_GE(begin, end);
    end = begin + tensor.num_bytes();
    for (int64_t i = 0; i < tensor.num_elements(); ++i) EXPECT_EQ(tensor.data<float>()[i], 0);
  }
  EXPECT_EQ(carver.used(), bytes);
}

// A read that the compiler keeps.
float read(const float* from) {
  return *static_cast<const volatile float*>(from);
}

class ForbiddenMemoryDeathTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!kMemoryIsChecked) GTEST_SKIP() << "only where the address sanitizer watches";
  }
};

TEST_F(ForbiddenMemoryDeathTest, LiesBetweenTensors) {
  const Arena arena(2 * carved_bytes(DType::f32, {16}));
  Carver carver = arena.carver();
  const float* first = carver.take(DType::f32, {16}).data<float>();
  EXPECT_EQ(read(first + 15), 0);
  EXPECT_DEATH(read(first + 16), "use-after-poison");
  EXPECT_DEATH(read(first + carved_bytes(DType::f32, {16}) / 4), "use-after-poison");  // not taken yet
  const float* second = carver.take(DType::f32, {16}).data<float>();
  EXPECT_EQ(read(second), 0);
  EXPECT_DEATH(read(second - 1), "use-after-poison");
}

TEST_F(ForbiddenMemoryDeathTest, IsScratchThatWasClosed) {
  Stream stream;
  const float* outer = nullptr;
  {
    const Scratch scratch(stream, 64);
    outer = scratch.data<float>();
    const float* inner = nullptr;
    {
      const Scratch nested(stream, 64);
      inner = nested.data<float>();
      read(inner + 15);
      EXPECT_DEATH(read(inner + 16), "use-after-poison");
    }
    EXPECT_DEATH(read(inner), "use-after-poison");
    read(outer);
  }
  EXPECT_DEATH(read(outer), "use-after-poison");
}

}  // namespace
}  // namespace transxssm
