// A tiny model of each kind through the whole CUDA path: streams, memory, operations, communicators,
// checkpoints, generation. Matrix products are the CPU's. What bf16 costs is measured against the CPU in
// float32: the device may be off by no more than twice what the CPU is off in bf16.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "launch/gather.h"
#include "launch/generator.h"
#include "launch/trainer.h"
#include "parallel/device_transport.h"
#include "parallel/local.h"
#include "runtime/rng.h"
#include "tests/support/device.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

constexpr int64_t kTokens = 80, kVocabulary = 131, kRows = 2, kSteps = 5;
constexpr double kTimesTheCpu = 2;
constexpr double kFloor = 1e-3;  // where both are hardly off

struct Kind {
  const char* name;
  const char* fields;
};
void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}
const Kind kKinds[] = {{"transxssm", "num_layers: 3 layer_pattern: 'SSA' d_ff: 192 "},
                       {"llama",
                        "num_layers: 2 layer_pattern: 'AA' d_ff: 192 learned_residual: false num_kv_heads: 1 "
                        "tie_embeddings: false"},
                       {"mamba2",
                        "num_layers: 2 layer_pattern: 'SS' learned_residual: false ssd_position: 'conv1d' "
                        "ssd_expand: 2 ssd_gate: true d_skip: true "
                        "attention_rope: false num_groups: 1"},
                       {"jamba",
                        "num_layers: 3 layer_pattern: 'SAS' d_ff: 192 learned_residual: false ssd_position: "
                        "'conv1d' ssd_expand: 2 ssd_gate: true "
                        "d_skip: true attention_rope: false num_groups: 2"}};

// An eps above most gradients: steps follow the gradients, where at 1e-8 the last place of one near zero
// turns its weight's whole step round, which no bound of bf16's error covers on every processor.
TrainConfig make_config(const std::string& fields, bool bf16, const std::string& parallel = "",
                        int ranks = 1) {
  return parse_config(
      fmt::format("model {{ vocab_size: {} d_model: 128 num_heads: 2 d_state: 64 chunk: 64 {} }} "
                  "data {{ train {{ prefix: 'none' }} sequence_length: {} }} schedule {{ steps: 10 }} "
                  "optimizer {{ learning_rate: 0.01 eps: 0.01 }} precision {{ compute: '{}' }} "
                  "parallel {{ global_batch: {} {} }} log {{ run_directory: 'none' }}",
                  kVocabulary, fields, kTokens, bf16 ? "bf16" : "f32", kRows, parallel),
      "test", {}, ranks);
}

// Rows of two documents, the second from token 30 + 7 * row on; or of one.
void fill(const Batch& batch, int64_t step, int64_t first_row, bool documents = true) {
  const Rng rng(7, "ids");
  for (int64_t i = 0; i < batch.rows(); ++i) {
    const int64_t row = step * kRows + first_row + i, cut = documents ? 30 + 7 * row : kTokens;
    const auto id = [&](int64_t t) {  // half of them follow from the one before
      const auto at = static_cast<uint64_t>(row * 1000 + t);
      return static_cast<int32_t>(t % 2 == 1 ? rng.below(at - 1, kVocabulary) * 5 % kVocabulary
                                             : rng.below(at, kVocabulary));
    };
    for (int64_t t = 0; t < kTokens; ++t) {
      batch.input.at<int32_t>({i, t}) = id(t);
      batch.target.at<int32_t>({i, t}) = id(t + 1);
      batch.position.at<int32_t>({i, t}) = static_cast<int32_t>(t < cut ? t : t - cut);
      batch.document.at<int32_t>({i, t}) = t < cut ? 0 : 1;
      batch.valid.at<uint8_t>({i, t}) = t + 1 != cut;
    }
  }
}

struct Result {
  std::vector<double> loss, gradient_norm;        // by step
  std::vector<LogicalTensor> gradients, weights;  // of step 1; at the end
};

Device gpu() {
  return test_device().device;
}

Result train(const TrainConfig& config, Device device, int ranks = 1, const std::string& save = "") {
  Result result;
  run_as_ranks(ranks, [&](Communicator& world) {
    Stream stream(device);
    attach_device(world, stream);
    Trainer trainer(config, world, stream);
    Result mine;
    for (int64_t step = 0; step < kSteps; ++step) {
      fill(trainer.batch(), step, trainer.first_row());
      const StepResult r = trainer.step();
      mine.loss.push_back(r.loss);
      mine.gradient_norm.push_back(r.gradient_norm);
      if (step == 0) mine.gradients = gather_parameters(trainer, &Parameter::gradient);
    }
    mine.weights = gather_parameters(trainer, &Parameter::weight);
    if (!save.empty()) {
      TrainState state;
      state.step = kSteps;
      state.run_uuid = make_uuid();
      save_checkpoint(world, posix_file_system(), save, state, {}, trainer.checkpoint_tensors());
    }
    if (world.rank() == 0) result = std::move(mine);
  });
  return result;
}

// Norm of the difference over the norm of what is expected.
template <class T>
double distance(const std::vector<T>& got, const std::vector<T>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  double squares = 0, all = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    squares += std::pow(static_cast<double>(got[i]) - static_cast<double>(expected[i]), 2);
    all += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(squares / all);
}

// `got` is about as far from `exact` as `bf16`, the CPU's, is.
template <class T>
void expect_as_good(const std::string& what, const std::vector<T>& got, const std::vector<T>& bf16,
                    const std::vector<T>& exact) {
  EXPECT_LE(distance(got, exact), kTimesTheCpu * distance(bf16, exact) + kFloor) << what;
}

void expect_as_good(const Result& got, const Result& bf16, const Result& exact) {
  expect_as_good("loss", got.loss, bf16.loss, exact.loss);
  expect_as_good("gradient norm", got.gradient_norm, bf16.gradient_norm, exact.gradient_norm);
  for (size_t i = 0; i < exact.weights.size(); ++i) {
    const auto of = [i](const std::vector<LogicalTensor>& all) { return all[i].values; };
    expect_as_good("gradient of " + exact.gradients[i].name, of(got.gradients), of(bf16.gradients),
                   of(exact.gradients));
    expect_as_good(exact.weights[i].name, of(got.weights), of(bf16.weights), of(exact.weights));
  }
}

void expect_same_bits(const Result& a, const Result& b) {
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_EQ(a.gradient_norm, b.gradient_norm);
  for (size_t i = 0; i < a.weights.size(); ++i) {
    EXPECT_EQ(a.gradients[i].values, b.gradients[i].values) << a.gradients[i].name;
    EXPECT_EQ(a.weights[i].values, b.weights[i].values) << a.weights[i].name;
  }
}

// Steps of which some have documents in some of their microbatches, and each another number of targets.
struct Graphed {
  Result result;
  int64_t recorded = 0, launched = 0;
};
Graphed train_by_graphs(const TrainConfig& config) {
  const std::vector<std::vector<bool>> documents = {{false, false}, {false, false}, {true, true},
                                                    {false, false}, {true, true},   {false, true},
                                                    {false, true},  {true, true}};
  const auto alone = single_rank();
  Stream stream(gpu());
  attach_device(*alone, stream);
  Trainer trainer(config, *alone, stream);
  Graphed got;
  for (size_t step = 0; step < documents.size(); ++step) {
    Batch& batch = trainer.batch();
    for (int64_t row = 0; row < kRows; ++row) {
      fill(batch.row_range(row, 1), static_cast<int64_t>(step) % 4, row,
           documents[step][static_cast<size_t>(row)]);
      for (size_t t = 0; t <= step; ++t) batch.valid.at<uint8_t>({row, static_cast<int64_t>(2 * t)}) = 0;
    }
    const StepResult r = trainer.step();
    got.result.loss.push_back(r.loss);
    got.result.gradient_norm.push_back(r.gradient_norm);
  }
  got.result.gradients = gather_parameters(trainer, &Parameter::gradient);
  got.result.weights = gather_parameters(trainer, &Parameter::weight);
  if (trainer.graphs() != nullptr)
    got.recorded = trainer.graphs()->num_recorded(), got.launched = trainer.graphs()->num_launched();
  return got;
}

TEST(CudaGraphs, HaveTheSameBits) {
  const Graphed by_graphs = train_by_graphs(make_config(kKinds[0].fields, true));
  const Graphed plain = train_by_graphs(make_config(kKinds[0].fields, true, "cuda_graph: false"));
  expect_same_bits(by_graphs.result, plain.result);
  EXPECT_EQ(by_graphs.recorded, 3);
  EXPECT_GE(by_graphs.launched, 4);  // all but the first of each of three kinds of step, unless memory grew
  EXPECT_EQ(plain.launched, 0);
}

class CudaTraining : public testing::TestWithParam<Kind> {
 protected:
  const std::string fields_ = GetParam().fields;
};

TEST_P(CudaTraining, EqualsTheCpuAndItself) {
  const TrainConfig config = make_config(fields_, true);
  const Result exact = train(make_config(fields_, false), {}), bf16 = train(config, {});
  EXPECT_LT(exact.loss.back(), exact.loss.front());
  const Result got = train(config, gpu());
  expect_as_good(got, bf16, exact);
  expect_same_bits(train(config, gpu()), got);
}

TEST_P(CudaTraining, OnTwoRanksEqualsTheCpu) {
  const Result exact = train(make_config(fields_, false), {});
  for (const char* mesh : {"tp: 2", "pp: 2"}) {
    SCOPED_TRACE(mesh);
    const TrainConfig config = make_config(fields_, true, mesh, 2);
    const Result bf16 = train(config, {}, 2), got = train(config, gpu(), 2);
    expect_as_good(got, bf16, exact);
  }
}

// The logits after a prompt and after each of some tokens that follow it.
std::vector<float> logits_of(const TrainConfig& config, const std::string& checkpoint, Device device,
                             const Precision& precision) {
  constexpr int64_t kPrompt = 70, kMore = 4;
  const auto alone = single_rank();
  Stream stream(device);
  attach_device(*alone, stream);
  Generator generator(model_config(config), {}, *alone, stream, 1, kPrompt + kMore, precision);
  load_checkpoint(*alone, posix_file_system(), checkpoint, generator.checkpoint_tensors());
  generator.weights_were_loaded();
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < kPrompt + kMore; ++i) ids.push_back(i * 37 % kVocabulary);
  std::vector<float> all;
  const auto feed = [&](int64_t first, int64_t count) {
    const Tensor logits = generator.next_logits(Tensor(ids.data() + first, DType::i32, {1, count}));
    all.insert(all.end(), logits.data<float>(), logits.data<float>() + kVocabulary);
  };
  feed(0, kPrompt);
  for (int64_t i = 0; i < kMore; ++i) feed(kPrompt + i, 1);
  return all;
}

TEST_P(CudaTraining, CheckpointAndGenerationEqualTheCpu) {
  const TrainConfig config = make_config(fields_, true);
  const TemporaryDirectory directory;
  const Result trained = train(config, gpu(), 1, directory.path());
  const std::string checkpoint = directory.path() + "/step-000000005";
  const auto alone = single_rank();
  Stream stream;
  Trainer on_cpu(config, *alone, stream);
  load_checkpoint(*alone, posix_file_system(), checkpoint, on_cpu.checkpoint_tensors());
  const std::vector<LogicalTensor> loaded = gather_parameters(on_cpu, &Parameter::weight);
  for (size_t i = 0; i < loaded.size(); ++i)
    EXPECT_EQ(loaded[i].values, trained.weights[i].values) << loaded[i].name;

  expect_as_good("logits", logits_of(config, checkpoint, gpu(), Precision::bf16()),
                 logits_of(config, checkpoint, {}, Precision::bf16()),
                 logits_of(config, checkpoint, {}, Precision::f32()));
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaTraining, testing::ValuesIn(kKinds),
                         [](const auto& kind) { return std::string(kind.param.name); });

}  // namespace
}  // namespace transxssm
