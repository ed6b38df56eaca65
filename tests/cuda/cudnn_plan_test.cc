// Which attention cuDNN knows, found out without a GPU: graphs are proposed to and compiled for an H100 that
// is described in JSON. Only the last step, loading the compiled kernel, needs a driver.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <ostream>
#include <vector>

#include "kernels/cuda/cudnn_attention.h"

namespace transxssm::cuda::cudnn {
namespace {

constexpr const char* kH100 = R"({
  "deviceName": "NVIDIA H100 80GB HBM3", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "pciDeviceId": 0,
  "multiProcessorCount": 132, "warpSize": 32, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
  "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "maxCtasPerSM": 32,
  "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
  "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
  "isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 85899345920, "smClockRateKHz": 1980000,
  "memClockRateKHz": 2619000, "l2CacheSize": 52428800})";

struct Case {
  int64_t rows, tokens, heads, key_heads, p;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.rows << " T" << c.tokens << " H" << c.heads << " KV" << c.key_heads << " P" << c.p;
}

// Views as a model has them: q, k and v (and their gradients) are columns of one projection. Nothing is read.
AttentionBackward arguments(const Case& c) {
  static float memory;
  const Tensor projected(&memory, DType::bf16, {c.rows, c.tokens, (c.heads + 2 * c.key_heads) * c.p});
  const auto heads = [&](int64_t begin, int64_t count) {
    return projected.slice(2, begin * c.p, count * c.p).reshape({c.rows, c.tokens, count, c.p});
  };
  AttentionBackward args;
  args.q = args.dq = heads(0, c.heads);
  args.k = args.dk = heads(c.heads, c.key_heads);
  args.v = args.dv = heads(c.heads + c.key_heads, c.key_heads);
  args.out = args.d_out = Tensor(&memory, DType::bf16, {c.rows, c.tokens, c.heads, c.p});
  args.log_sum_exp = Tensor(&memory, DType::f32, {c.rows, c.heads, c.tokens});
  return args;
}
AttentionForward forward_arguments(const Case& c) {
  const AttentionBackward args = arguments(c);
  return {.q = args.q, .k = args.k, .v = args.v, .out = args.out, .log_sum_exp = args.log_sum_exp};
}

class CudnnPlan : public testing::TestWithParam<Case> {
 protected:
  // cuDNN finds the driver's library among those that are loaded: the toolkit's empty one serves.
  void SetUp() override {
    const int how = RTLD_NOW | RTLD_GLOBAL;
    if (dlopen("libcuda.so.1", how) == nullptr && dlopen(CUDA_STUB, how) == nullptr)
      GTEST_SKIP() << "neither a driver nor the toolkit's stub of it";
    if (!missing().empty()) GTEST_SKIP() << "no cuDNN: " << missing();
  }
  // What is proposed, the first of it compiled.
  static std::vector<Proposal> compiled(const Graph& graph) {
    const Target h100{std::string(kH100)};
    const Descriptor operations = graph.finish(h100);
    std::vector<Proposal> proposals = propose(operations, h100);
    if (proposals.empty()) return proposals;
    Descriptor plan;
    const cudnnStatus_t status = compile(proposals.front(), h100, plan);
    EXPECT_TRUE(status == CUDNN_STATUS_SUCCESS || status == CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER)
        << library().get_error_string(status);
    return proposals;
  }
};
INSTANTIATE_TEST_SUITE_P(Shapes, CudnnPlan,
                         testing::Values(Case{4, 512, 8, 8, 64}, Case{1, 4096, 32, 8, 64},
                                         Case{1, 16384, 32, 32, 64}, Case{4, 512, 8, 2, 128},
                                         Case{1, 16384, 16, 16, 128}));

TEST_P(CudnnPlan, ForwardIsSupported) {
  const ForwardGraph forward{AttentionLayout(forward_arguments(GetParam()))};
  const std::vector<Proposal> proposals = compiled(forward.graph);
  ASSERT_FALSE(proposals.empty());
  EXPECT_LT(proposals.front().workspace_bytes, 1 << 20);
}

// Its workspace grows with the tokens and not with their square: at most two gradients of every head in f32.
TEST_P(CudnnPlan, BackwardIsSupported) {
  const Case& c = GetParam();
  const BackwardGraph backward{AttentionLayout(arguments(c))};
  const std::vector<Proposal> proposals = compiled(backward.graph);
  ASSERT_FALSE(proposals.empty());
  EXPECT_LT(proposals.front().workspace_bytes, c.rows * c.tokens * c.heads * c.p * 8 + (1 << 20));
}

// Decoding and evaluation keep no log of sums.
TEST_F(CudnnPlan, ForwardWithoutSums) {
  AttentionForward args = forward_arguments({1, 1024, 4, 4, 64});
  args.log_sum_exp = Tensor();
  const ForwardGraph forward{AttentionLayout(args)};
  EXPECT_EQ(forward.log_sum_exp, 0);
  EXPECT_FALSE(compiled(forward.graph).empty());
}

TEST_F(CudnnPlan, SaysWhatIsWrong) {
  try {
    Target(std::string("{}"));
    FAIL() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("a device described in JSON"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace transxssm::cuda::cudnn
