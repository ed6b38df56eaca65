// Training, evaluation, checkpoints and generation on a device that the host cannot touch, whose operations
// are the CPU's: every bit must be the CPU's, on every mesh, and the host must wait no more often than it has
// to.
#include <gtest/gtest.h>

#include <optional>

#include "launch/gather.h"
#include "launch/generator.h"
#include "launch/trainer.h"
#include "parallel/device_transport.h"
#include "parallel/local.h"
#include "runtime/rng.h"
#include "runtime/trace.h"
#include "tests/support/guarded_operations.h"
#include "tests/support/model_kinds.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

constexpr int64_t kTokens = 21, kVocabulary = 37, kSteps = 3;

struct MeshCase {
  std::string name;
  int ranks;
  std::string parallel, precision;
};

TrainConfig make_config(const std::string& model, const std::string& parallel, int ranks,
                        const std::string& precision = "f32") {
  return parse_config(
      fmt::format(
          "model {{ {} }} data {{ train {{ prefix: 'none' }} sequence_length: {} }} "
          "schedule {{ steps: 10 }} optimizer {{ learning_rate: 0.01 }} "
          "parallel {{ global_batch: 4 {} }} precision {{ compute: '{}' }} log {{ run_directory: 'none' }}",
          model, kTokens, parallel, precision),
      "test", {}, ranks);
}

std::string kind(const std::string& name) {
  for (const ModelKind& k : model_kinds())
    if (k.name == name) return to_text(k.config);
  throw InternalError("no kind {}", name);
}

// Rows of two documents of any length.
void fill(const Batch& batch, int64_t step, int64_t first_row) {
  const Rng ids(7, "ids"), cuts(7, "cuts");
  for (int64_t i = 0; i < batch.rows(); ++i) {
    const auto row = static_cast<uint64_t>(step * 100 + first_row + i);
    const auto cut = static_cast<int64_t>(cuts.below(row, kTokens));
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto id = [&](int64_t at) {
        return static_cast<int32_t>(ids.below(row * 1000 + static_cast<uint64_t>(at), kVocabulary));
      };
      batch.input.at<int32_t>({i, t}) = id(t);
      batch.target.at<int32_t>({i, t}) = id(t + 1);
      batch.position.at<int32_t>({i, t}) = static_cast<int32_t>(t < cut ? t : t - cut);
      batch.document.at<int32_t>({i, t}) = t < cut ? 0 : 1;
      batch.valid.at<uint8_t>({i, t}) = t + 1 != cut;
    }
  }
}

struct Result {
  std::vector<double> numbers;  // losses, gradient norms, the loss of an evaluation
  std::vector<LogicalTensor> weights, layers;
};

// On rank 0's terms; `save` receives a checkpoint of the end where not empty.
Result train(const TrainConfig& config, int ranks, Device device, const std::string& save = "") {
  Result result;
  run_as_ranks(ranks, [&](Communicator& world) {
    Stream stream(device);
    attach_device(world, stream);
    Trainer trainer(config, world, stream);
    std::vector<double> numbers;
    std::optional<LayerRecorder> recorder;
    recorder.emplace(trainer, stream, 2, kTokens, true);
    for (int64_t step = 0; step < kSteps; ++step) {
      fill(trainer.batch(), step, trainer.first_row());
      const StepResult r = trainer.step();
      numbers.insert(numbers.end(), {r.loss, r.gradient_norm});
    }
    fill(trainer.batch(), kSteps, trainer.first_row());
    double evaluated = 0;
    for (const double nats : trainer.evaluate(trainer.batch().rows() / trainer.microbatch_rows()))
      if (trainer.knows_loss()) evaluated += nats;
    world.all_reduce(Tensor(&evaluated, DType::f64, {1}));
    numbers.push_back(evaluated);
    if (!save.empty()) {
      TrainState state;
      state.step = kSteps;
      state.run_uuid = make_uuid();
      save_checkpoint(world, posix_file_system(), save, state,
                      {.model_config = to_text(model_config(config))}, trainer.checkpoint_tensors());
    }
    std::vector<LogicalTensor> layers = recorder->gather();
    std::vector<LogicalTensor> weights = gather_parameters(trainer, &Parameter::weight);
    if (world.rank() == 0) result = {numbers, std::move(weights), std::move(layers)};
  });
  return result;
}

void expect_same_bits(const std::vector<LogicalTensor>& got, const std::vector<LogicalTensor>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i].values, expected[i].values) << expected[i].name;
}

// Each kind on one rank and, in bf16, on one of the meshes.
class DeviceTraining : public testing::TestWithParam<size_t> {};

TEST_P(DeviceTraining, HasTheBitsOfTheCpu) {
  const std::vector<MeshCase> meshes = {{"tp 2", 2, "tp: 2", "bf16"},
                                        {"pp 2, recomputed", 2, "pp: 2 recompute: 'layer'", "bf16"},
                                        {"dp 2, pp 2", 4, "pp: 2 dp: 2", "bf16"}};
  const std::string model = to_text(model_kinds()[GetParam()].config);
  for (const MeshCase& mesh : {MeshCase{"one rank", 1, "", "f32"}, meshes[GetParam() % meshes.size()]}) {
    SCOPED_TRACE(mesh.name);
    const TrainConfig config = make_config(model, mesh.parallel, mesh.ranks, mesh.precision);
    const Result expected = train(config, mesh.ranks, {});
    WithGuardedDevice guarded;
    GuardedOperations operations(guarded.device);
    const Result got = train(config, mesh.ranks, {DeviceKind::cuda, 0});
    EXPECT_EQ(got.numbers, expected.numbers);
    expect_same_bits(got.weights, expected.weights);
    expect_same_bits(got.layers, expected.layers);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DeviceTraining, testing::Range(size_t{0}, model_kinds().size()),
                         [](const auto& index) { return model_kinds()[index.param].name; });

// The host waits where it reads the loss and where it reads the norm.
TEST(DeviceSteps, WaitTwice) {
  WithGuardedDevice guarded;
  GuardedOperations operations(guarded.device);
  const auto alone = single_rank();
  Stream stream(Device{DeviceKind::cuda, 0});
  Trainer trainer(make_config(kind("transxssm"), "", 1), *alone, stream);
  std::vector<int64_t> waits;
  for (int64_t step = 0; step < 3; ++step) {
    fill(trainer.batch(), step, 0);
    const int64_t before = guarded.device.waits();
    trainer.step();
    waits.push_back(guarded.device.waits() - before);
  }
  EXPECT_GE(waits[0], 2);  // scratch memory grows
  EXPECT_EQ(waits[1], 3);  // the loss (a copy to memory that is not pinned, and the wait), the norm
  EXPECT_EQ(waits[2], 3);
}

// Data parallel sums begin under the backward pass of the last microbatch: the first before the last layer's
// weight gradients, and none before the last microbatch.
TEST(DeviceSteps, SumsBeginUnderTheBackwardPass) {
  WithGuardedDevice guarded;
  GuardedOperations operations(guarded.device);
  for (const char* recompute : {"keep", "layer"}) {
    const std::string parallel =
        fmt::format("dp: 2 microbatch_size: 1 bucket_elements: 1000 recompute: '{}'", recompute);
    run_as_ranks(2, [&](Communicator& world) {
      Stream stream(Device{DeviceKind::cuda, 0});
      attach_device(world, stream);
      Trainer trainer(make_config(kind("transxssm"), parallel, 2), world, stream);
      fill(trainer.batch(), 0, trainer.first_row());
      Trace trace;
      trainer.step();
      int started = 0, products_after_first = 0, embeddings = 0;
      for (const TraceEvent& event : trace.take()) {
        if (event.device) continue;
        const std::string name = event.name;
        if (name == "EmbeddingBackward") ++embeddings;
        if (name == "Gemm" && started > 0) ++products_after_first;
        if (name != "start of all_reduce") continue;
        EXPECT_EQ(embeddings, started == 0 ? 1 : embeddings);  // of the first of two microbatches
        ++started;
      }
      EXPECT_EQ(embeddings, 2);
      EXPECT_GT(started, 4);
      EXPECT_GE(products_after_first, 3 * 4);  // three layers' weight gradients
    });
  }
}

// What was saved from a device is loaded on the CPU, and generates there what it generates on the device.
TEST(DeviceCheckpoint, GeneratesTheSameText) {
  const TrainConfig config = make_config(kind("jamba"), "pp: 2", 2);
  const TemporaryDirectory on_cpu, on_device;
  train(config, 2, {}, on_cpu.path());
  const auto generate = [&](const std::string& checkpoints, Device device, int tp, int pp) {
    std::vector<int32_t> tokens;
    run_as_ranks(tp * pp, [&](Communicator& world) {
      Stream stream(device);
      attach_device(world, stream);
      const std::vector<std::vector<int32_t>> prompts = {{3, 1, 4, 1, 5, 9, 2, 6}, {2, 7}};
      Generator generator(model_config(config), {.pp = pp, .dp = 1, .cp = 1, .tp = tp}, world, stream, 2, 24);
      load_checkpoint(world, posix_file_system(), checkpoints + "/step-000000003",
                      generator.checkpoint_tensors());
      generator.weights_were_loaded();
      generator.generate(prompts, 12, {.temperature = 0.7, .seed = 3}, [&](int64_t row, int32_t token) {
        if (world.rank() == 0) tokens.push_back(static_cast<int32_t>(row) * 1000 + token);
        return true;
      });
    });
    return tokens;
  };
  const std::vector<int32_t> expected = generate(on_cpu.path(), {}, 1, 1);
  WithGuardedDevice guarded;
  GuardedOperations operations(guarded.device);
  const Device device{DeviceKind::cuda, 0};
  train(config, 2, device, on_device.path());
  EXPECT_EQ(generate(on_device.path(), {}, 1, 1), expected);
  EXPECT_EQ(generate(on_cpu.path(), device, 1, 1), expected);
  EXPECT_EQ(generate(on_device.path(), device, 1, 2), expected);
  EXPECT_EQ(generate(on_device.path(), device, 2, 1), generate(on_cpu.path(), {}, 2, 1));
}

// A gradient that is not finite is found on the device, and named.
TEST(DeviceSteps, NotFiniteGradientsAreNamed) {
  WithGuardedDevice guarded;
  GuardedOperations operations(guarded.device);
  const auto alone = single_rank();
  Stream stream(Device{DeviceKind::cuda, 0});
  Trainer trainer(make_config(kind("transxssm"), "", 1), *alone, stream);
  fill(trainer.batch(), 0, 0);
  const Parameter& last = trainer.network().parameters().all().back();
  std::vector<float> huge(static_cast<size_t>(last.num_elements()), 3e38f);
  transfer(stream, Tensor(huge.data(), DType::f32, last.weight.shape()), last.weight);
  try {
    trainer.step();
    FAIL() << "no error";
  } catch (const NumericsError& error) {
    EXPECT_NE(std::string(error.what()).find("step 1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace transxssm
