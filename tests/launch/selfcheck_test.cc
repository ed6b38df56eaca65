// `selfcheck` accepts a folder of this program's own figures on every mesh, and names what is off in one that
// was tampered with.
#include "launch/selfcheck.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "checkpoint/tensor_file.h"
#include "parallel/local.h"
#include "runtime/data/token_file.h"
#include "runtime/rng.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/threads.h"

namespace transxssm {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kVocabulary = 37, kRows = 2, kTokens = 11;
constexpr const char* kModel =
    "vocab_size: 37 d_model: 16 num_layers: 4 num_heads: 2 d_ff: 24 d_state: 8 chunk: 8 attn_period: 4 "
    "attn_offset: 3";

using Edit = std::function<void(GoldenFolder&)>;

GoldenFolder make_folder(bool trajectory, const char* model = kModel) {
  GoldenFolder golden;
  golden.path = "made";
  golden.model.config = model_config_from_text(model);
  golden.parameters = hugging_face_tensors(golden.model.config);
  for (const HfTensor& tensor : golden.parameters)
    for (const HfPart& part : tensor.parts) {
      std::vector<float>& values = golden.model.parameters[part.name];
      const Rng rng(3, part.name);
      const double mean = part.shape.rank() == 1 ? 1 : 0;
      for (int64_t i = 0; i < part.shape.num_elements(); ++i)
        values.push_back(static_cast<float>(mean + 0.2 * rng.normal(static_cast<uint64_t>(i))));
    }
  golden.trajectory = trajectory;
  golden.steps = trajectory ? 3 : 1;
  golden.rows = kRows;
  golden.tokens = kTokens;
  const Rng rng(3, "ids");
  for (int64_t i = 0; i < golden.steps * kRows * kTokens; ++i) {
    golden.input_ids.push_back(
        static_cast<int64_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(kVocabulary))));
    golden.document_ids.push_back(i % kTokens < 6 ? 0 : 1);
  }
  if (trajectory) golden.learning_rate = {1e-3, 2e-3, 1e-3};
  return golden;
}

std::vector<NamedTensor> weights_of(const GoldenFolder& golden, std::vector<std::vector<float>>& storage) {
  std::vector<NamedTensor> tensors;
  storage.reserve(golden.parameters.size());
  for (const HfTensor& tensor : golden.parameters) {
    std::vector<float>& values = storage.emplace_back();
    for (const HfPart& part : tensor.parts) {
      const std::vector<float>& of_part = golden.model.parameters.at(part.name);
      values.insert(values.end(), of_part.begin(), of_part.end());
    }
    tensors.push_back({tensor.name, Tensor(values.data(), DType::f32, tensor.shape)});
  }
  return tensors;
}

// A folder whose figures are this program's; the weights are written after `edit`.
void write_folder(const TemporaryDirectory& directory, GoldenFolder golden, GoldenResult result,
                  const Edit& edit = {}) {
  write_golden(posix_file_system(), directory / "golden.safetensors", golden, result);
  if (edit) edit(golden);
  directory.write("config.json", model_config_to_hugging_face(golden.model.config, {}));
  std::vector<std::vector<float>> storage;
  write_tensor_file(posix_file_system(), directory / "model.safetensors", weights_of(golden, storage));
}

GoldenResult compute(const GoldenFolder& golden) {
  const auto alone = single_rank();
  Stream stream(test_threads());
  return compute_golden(golden, golden_config(golden, {}, 1), *alone, stream);
}

const GoldenFolder& folder() {
  static const GoldenFolder golden = make_folder(false);
  return golden;
}

GoldenResult result() {
  static const GoldenResult computed = compute(folder());
  return computed;
}

LogicalTensor& tensor_of(GoldenResult& result, const std::string& name) {
  for (LogicalTensor& tensor : result.tensors)
    if (tensor.name == name) return tensor;
  throw InternalError("no {}", name);
}

struct Outcome {
  ExitCode code = ExitCode::ok;
  std::string message, printed;
};

Outcome check(const std::string& path, int ranks = 1, const std::vector<std::string>& overrides = {}) {
  Outcome outcome;
  testing::internal::CaptureStdout();
  try {
    run_as_ranks(ranks, [&](Communicator& world) {
      Stream stream(test_threads());
      const GoldenFolder golden = read_golden(posix_file_system(), path);
      check_golden(golden, golden_config(golden, overrides, world.size()), world, stream);
    });
  } catch (const Error& error) {
    outcome.code = error.code();
    outcome.message = error.what();
  }
  outcome.printed = testing::internal::GetCapturedStdout();
  return outcome;
}

TEST(SelfcheckGolden, AcceptsItsOwnFiguresOnEveryMesh) {
  const TemporaryDirectory directory;
  write_folder(directory, folder(), result());
  struct MeshCase {
    int ranks;
    std::vector<std::string> overrides;
  };
  for (const MeshCase& mesh :
       {MeshCase{1, {}}, MeshCase{2, {"parallel.tp=2"}}, MeshCase{2, {"parallel.pp=2"}}, MeshCase{2, {}},
        MeshCase{4, {"parallel.tp=2", "parallel.pp=2"}}}) {
    const Outcome outcome = check(directory.path(), mesh.ranks, mesh.overrides);
    EXPECT_EQ(outcome.code, ExitCode::ok) << mesh.ranks << " " << outcome.message;
    EXPECT_THAT(outcome.printed, AllOf(HasSubstr("hidden"), HasSubstr("logits"), HasSubstr("loss"),
                                       HasSubstr("gradients"), HasSubstr("all within their bounds")));
  }
}

// Tensors of this form join several parameters.
TEST(SelfcheckGolden, KnowsTheFormOfMamba2) {
  const GoldenFolder golden = make_folder(
      false,
      "vocab_size: 37 d_model: 16 num_layers: 2 num_heads: 2 num_groups: 1 d_ff: 0 d_state: 8 chunk: 8 "
      "layer_pattern: 'SS' ssd_position: 'conv1d' ssd_expand: 2 ssd_gate: true d_skip: true "
      "learned_residual: false");
  GoldenResult figures = compute(golden);
  const TemporaryDirectory directory;
  write_folder(directory, golden, figures);
  const Outcome outcome = check(directory.path(), 2, {"parallel.tp=2"});
  EXPECT_EQ(outcome.code, ExitCode::ok) << outcome.message;
  tensor_of(figures, "grad.backbone.layers.1.mixer.conv1d.weight").values.back() += 0.01f;
  write_folder(directory, golden, figures);
  EXPECT_THAT(check(directory.path()).message,
              HasSubstr("layers.1.mixer.conv1d.weight is the first to differ"));
}

// A gradient that is nothing beside the others is measured by them.
TEST(SelfcheckGolden, SmallGradientsAreMeasuredByAll) {
  const std::string name = "grad.model.layers.0.ssd.dt_bias";
  const auto error_of = [&](float value) {
    GoldenFolder golden = folder();
    GoldenResult figures = result();
    for (const LogicalTensor& tensor : figures.tensors)
      golden.expected[tensor.name] = {tensor.values.begin(), tensor.values.end()};
    golden.expected["loss"] = figures.loss;
    golden.expected[name].assign(2, 0);
    double squares = 0;
    for (const HfTensor& parameter : golden.parameters)
      for (double g : golden.expected["grad." + parameter.name]) squares += g * g;
    tensor_of(figures, name).values = {value * static_cast<float>(std::sqrt(squares)), 0};
    const auto classes = compare_golden(golden, figures);
    const Comparison* wrong = first_wrong(classes);
    return wrong ? wrong->name : "";
  };
  EXPECT_EQ(error_of(0.9e-8f), "");
  EXPECT_EQ(error_of(1.1e-8f), name);
}

TEST(SelfcheckGolden, NamesTheFirstTensorThatIsOff) {
  const auto expect_named = [](const std::string& name, GoldenResult figures, const Edit& edit = {}) {
    const TemporaryDirectory directory;
    write_folder(directory, folder(), std::move(figures), edit);
    const Outcome outcome = check(directory.path(), 2, {"parallel.pp=2"});
    EXPECT_EQ(outcome.code, ExitCode::numerics) << name;
    EXPECT_THAT(outcome.message, testing::StartsWith(name + " is the first to differ"));
  };
  // A weight: every layer after it is off, the first of them is named.
  expect_named("hidden.1", result(), [](GoldenFolder& golden) {
    golden.model.parameters.at("model.layers.1.feed_forward.up_proj.weight")[5] += 0.01f;
  });
  // Only the head sees it.
  expect_named("logits", result(), [](GoldenFolder& golden) {
    golden.model.parameters.at("model.final_layernorm.weight")[0] += 0.01f;
  });
  GoldenResult gradient = result();
  tensor_of(gradient, "grad.model.layers.2.ssd.x_proj.weight").values[3] += 0.01f;
  tensor_of(gradient, "grad.model.word_embed.weight").values[3] += 0.01f;  // comes later
  expect_named("grad.model.layers.2.ssd.x_proj.weight", gradient);
  GoldenResult loss = result();
  loss.loss[0] *= 1 + 4e-6;
  expect_named("loss", loss);
}

TEST(SelfcheckGolden, BoundsAreThoseItPrints) {
  const Shape shape = {2, 2};
  const std::vector<double> expected = {1, -4, 2, 0};
  const std::vector<float> got = {1, -4, 2.5f, 0};
  const Comparison largest = compare_largest("x", shape, got, expected, 0.125);
  EXPECT_DOUBLE_EQ(largest.error, 0.125);
  EXPECT_EQ(largest.where, "[1, 0]");
  EXPECT_TRUE(largest.good());
  EXPECT_DOUBLE_EQ(compare_norm("x", shape, got, expected, 2, 0.2).error, 0.25);
  EXPECT_FALSE(compare_norm("x", shape, got, expected, 2, 0.2).good());
  const std::vector<float> nan = {1, -4, NAN, 0};
  EXPECT_FALSE(compare_largest("x", shape, nan, expected, 1e9).good());
  EXPECT_FALSE(compare_norm("x", shape, nan, expected, 1, 1e9).good());
  EXPECT_FALSE(compare_norm("x", shape, got, expected, 0, 1e9).good());
}

TEST(SelfcheckGolden, ATrajectoryIsComparedStepByStep) {
  const GoldenFolder golden = make_folder(true);
  const GoldenResult figures = compute(golden);
  const TemporaryDirectory directory;
  write_folder(directory, golden, figures);
  const Outcome outcome = check(directory.path(), 2, {"parallel.tp=2"});
  EXPECT_EQ(outcome.code, ExitCode::ok) << outcome.message;
  EXPECT_THAT(outcome.printed, AllOf(HasSubstr("final"), HasSubstr("grad norm"), HasSubstr("all within")));

  GoldenResult loss = figures;
  loss.loss[1] += 2e-4;
  write_folder(directory, golden, loss);
  EXPECT_THAT(check(directory.path()).message, HasSubstr("loss of step 2 is the first to differ"));

  GoldenResult weight = figures;
  tensor_of(weight, "final.model.layers.0.ssd.out_proj.weight").values[7] += 1e-3f;
  write_folder(directory, golden, weight);
  const Outcome off = check(directory.path());
  EXPECT_EQ(off.code, ExitCode::numerics);
  EXPECT_THAT(off.message, HasSubstr("final.model.layers.0.ssd.out_proj.weight is the first to differ"));
}

TEST(SelfcheckGolden, BadFoldersAreRefusedByName) {
  const auto expect_refused = [](const TemporaryDirectory& directory, const std::string& name) {
    const Outcome outcome = check(directory.path());
    EXPECT_EQ(outcome.code, ExitCode::checkpoint) << name << ": " << outcome.message;
    EXPECT_THAT(outcome.message, HasSubstr(name));
  };
  const auto with_figures = [&](const std::string& name, const std::function<void(GoldenResult&)>& edit) {
    const TemporaryDirectory directory;
    GoldenResult figures = result();
    edit(figures);
    write_folder(directory, folder(), figures);
    expect_refused(directory, name);
  };
  with_figures("logits is missing", [](GoldenResult& r) {
    std::erase_if(r.tensors, [](const LogicalTensor& t) { return t.name == "logits"; });
  });
  with_figures("grad.model.layers.3.attn.q_proj.weight", [](GoldenResult& r) {
    tensor_of(r, "grad.model.layers.3.attn.q_proj.weight").shape = {8, 32};
  });
  with_figures("hidden.9 is not expected",
               [](GoldenResult& r) { tensor_of(r, "hidden.0").name = "hidden.9"; });
  with_figures("grad.model.word_embed.weight is nan",
               [](GoldenResult& r) { tensor_of(r, "grad.model.word_embed.weight").values[0] = NAN; });

  const TemporaryDirectory directory;
  expect_refused(directory, "config.json");
  GoldenFolder stranger = folder();
  stranger.input_ids[4] = kVocabulary;
  write_folder(directory, stranger, result());
  expect_refused(directory, "input_ids");
  write_folder(directory, folder(), result());
  for (const char* file : {"golden.safetensors", "model.safetensors"}) {
    const std::string whole = TemporaryDirectory::read(directory / file);
    directory.write(file, whole.substr(0, whole.size() - 4));
    expect_refused(directory, file);
    directory.write(file, whole);
  }
  EXPECT_EQ(check(directory.path(), 1, {"model.d_ff=8"}).code, ExitCode::usage);
  EXPECT_EQ(check(directory.path(), 4, {"parallel.tp=4"}).code, ExitCode::usage);
}

TEST(SelfcheckMesh, AMeshEqualsOneRankAndSaysWhatDoesNot) {
  const TemporaryDirectory directory;
  TokenFileWriter writer(posix_file_system(), directory / "tokens", kVocabulary, true);
  const Rng rng(1, "tokens");
  std::vector<int32_t> document;
  for (uint64_t i = 0; i < 700; ++i) {
    document.push_back(static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(kVocabulary))));
    if (i % 23 != 22 && i != 699) continue;
    writer.add_tokens(document);
    writer.end_document();
    document.clear();
  }
  writer.finish({});
  const auto config = [&](const char* mesh, int ranks) {
    return parse_config(fmt::format("model {{ {} }} data {{ train {{ prefix: '{}/tokens' }} "
                                    "validation_fraction: 0 sequence_length: 20 }} schedule {{ steps: 50 }} "
                                    "parallel {{ global_batch: 4 {} }} log {{ run_directory: 'none' }}",
                                    kModel, directory.path(), mesh),
                        "test", {}, ranks);
  };
  testing::internal::CaptureStdout();
  MeshRun alone;
  run_as_ranks(4, [&](Communicator& world) {
    Stream stream(test_threads());
    check_mesh_run(config("tp: 2 dp: 2", 4), config("", 1), 3, world, stream);
    const auto one = single_rank();
    if (world.rank() == 0) alone = run_mesh(config("", 1), 3, *one, stream);
  });
  EXPECT_THAT(testing::internal::GetCapturedStdout(),
              AllOf(HasSubstr("dp 2"), HasSubstr("steps 2 to 3"), HasSubstr("all within")));

  const auto named = [&](const std::function<void(MeshRun&)>& edit) {
    MeshRun mesh = alone;
    edit(mesh);
    const auto classes = compare_meshes(mesh, alone);
    const Comparison* wrong = first_wrong(classes);
    return wrong ? wrong->name : "";
  };
  EXPECT_EQ(named([](MeshRun&) {}), "");
  EXPECT_EQ(named([](MeshRun& m) {
              m.layers[2].values[0] += 1;
              m.loss[0] += 1;
            }),
            "output of layer 2 in step 1");
  EXPECT_EQ(named([](MeshRun& m) {
              m.gradients[0].values[0] += 1;
              m.gradients[1].values[0] += 1;
            }),
            "gradient of " + alone.gradients[1].name + " in step 1");
  EXPECT_EQ(named([](MeshRun& m) { m.weights[0].values[0] += 1e-6f; }), alone.weights[0].name);
  EXPECT_EQ(named([](MeshRun& m) { m.loss[1] *= 1.0001; }), "loss of step 2");
}

}  // namespace
}  // namespace transxssm
