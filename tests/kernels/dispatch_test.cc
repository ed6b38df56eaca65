#include <gtest/gtest.h>

#include "kernels/reduce.h"
#include "kernels/swiglu.h"
#include "tests/support/tensors.h"

namespace transxssm {
namespace {

TEST(Dispatch, NamesTheTensorThatIsWrong) {
  Stream stream;
  const OwnedTensor gate = zeros<float>({2, 8}), up = zeros<float>({2, 7}), y = zeros<float>({2, 8});
  try {
    run(stream, SwigluForward{gate, up, y});
    FAIL() << "shapes differ";
  } catch (const InternalError& error) {
    EXPECT_NE(std::string(error.what()).find("SwigluForward.up is f32 [2, 7], not f32 [2, 8]"),
              std::string::npos)
        << error.what();
  }
  const OwnedTensor half = zeros<BFloat16>({2, 8}), integers = zeros<int32_t>({2, 8});
  EXPECT_THROW(run(stream, SwigluForward{integers, integers, integers}), InternalError);
  EXPECT_THROW(run(stream, SwigluForward{gate, half, gate}), InternalError) << "of another type";
  EXPECT_THROW(sum_of_squares(stream, half), InternalError);
  EXPECT_THROW(run(stream, SwigluForward{gate, gate, Tensor()}), InternalError);
}

}  // namespace
}  // namespace transxssm
