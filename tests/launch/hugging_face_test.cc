// A model goes to Hugging Face and comes back as it was; what is wrong is refused before anything is written.
#include "launch/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/hugging_face.h"
#include "launch/commands/hugging_face.h"
#include "model/accounting.h"
#include "parallel/local.h"
#include "parallel/mesh.h"
#include "runtime/data/bpe_trainer.h"
#include "runtime/rng.h"
#include "tests/support/model_kinds.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using nlohmann::json;
using testing::HasSubstr;

using Parameters = std::map<std::string, std::vector<float>>;

Parameters random_parameters(const ModelConfig& config) {
  Parameters parameters;
  for (const HfTensor& tensor : hugging_face_tensors(config)) {
    for (const HfPart& part : tensor.parts) {
      const Rng rng(7, part.name);
      std::vector<float>& values = parameters[part.name];
      values.resize(static_cast<size_t>(part.shape.num_elements()));
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(rng.uniform(i) - 0.5);
    }
  }
  return parameters;
}

// Tensors of a checkpoint over `parameters`; those that are not there yet are made, not finite.
std::vector<CheckpointTensor> tensors_of(const ModelConfig& config, TensorKind kind, Parameters& parameters) {
  std::vector<CheckpointTensor> tensors;
  for (const HfTensor& tensor : hugging_face_tensors(config)) {
    for (const HfPart& part : tensor.parts) {
      std::vector<float>& values = parameters[part.name];
      values.resize(static_cast<size_t>(part.shape.num_elements()), NAN);
      CheckpointTensor& view = tensors.emplace_back();
      view.name = part.name;
      view.kind = kind;
      view.global_shape = view.offset = view.extent = part.shape;
      for (int d = 0; d < part.shape.rank(); ++d) view.offset[d] = 0;
      view.data = Tensor(values.data(), DType::f32, part.shape);
    }
  }
  return tensors;
}

class HuggingFaceCommands : public testing::Test {
 protected:
  int run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "checkpoint");
    testing::internal::CaptureStdout();
    int code = -1;
    error_.clear();
    try {
      code = run_program(
          {.name = "transxssm", .summary = "", .version = "", .commands = hugging_face_commands()},
          arguments);
    } catch (const Error& error) {
      code = static_cast<int>(error.code());
      error_ = error.what();
    }
    output_ = testing::internal::GetCapturedStdout();
    return code;
  }
  std::string save(const std::string& run, const ModelConfig& config, Parameters parameters,
                   const std::string& tokenizer_json = "") {
    TrainState state;
    state.step = 3;
    state.run_uuid = make_uuid();
    CheckpointText text;
    text.model_config = to_text(config);
    text.tokenizer_json = tokenizer_json;
    return save_checkpoint(*single_rank(), files_, directory_ / run + "/checkpoints", state, text,
                           tensors_of(config, TensorKind::master, parameters));
  }
  LoadedCheckpoint load(const std::string& run, const ModelConfig& config, TensorKind kind,
                        Parameters& parameters) {
    const std::string path = directory_ / run + "/checkpoints/step-000000000";
    return load_checkpoint(*single_rank(), files_, path, tensors_of(config, kind, parameters));
  }
  std::string contents(const std::string& name) { return TemporaryDirectory::read(directory_ / name); }
  json parsed(const std::string& name) { return json::parse(contents(name)); }
  void expect_same_folders(const std::string& a, const std::string& b) {
    ASSERT_EQ(files_.list(directory_ / a), files_.list(directory_ / b));
    for (const std::string& name : files_.list(directory_ / a))
      EXPECT_EQ(contents(a + "/" + name), contents(b + "/" + name)) << name;
  }

  TemporaryDirectory directory_;
  FileSystem& files_ = posix_file_system();
  std::string output_, error_;
};

TEST_F(HuggingFaceCommands, EveryKindComesBackToTheBit) {
  for (const ModelKind& kind : model_kinds()) {
    SCOPED_TRACE(kind.name);
    const std::string first = kind.name + "-run", second = kind.name + "-imported";
    const Parameters parameters = random_parameters(kind.config);
    save(first, kind.config, parameters);
    ASSERT_EQ(run({"export-hf", directory_ / first, directory_ / kind.name}), 0) << error_;
    ASSERT_EQ(run({"import-hf", directory_ / kind.name, directory_ / second}), 0) << error_;
    const ModelConfig config = model_config_from_text(
        read_manifest(files_, directory_ / second + "/checkpoints/step-000000000").text.model_config);
    Parameters imported, moments;
    const LoadedCheckpoint loaded = load(second, config, TensorKind::master, imported);
    EXPECT_EQ(loaded.state.step, 0);
    EXPECT_EQ(imported, parameters);
    for (const TensorKind moment : {TensorKind::exp_avg, TensorKind::exp_avg_sq}) {
      load(second, config, moment, moments);
      for (const auto& [name, values] : moments)
        EXPECT_EQ(values, std::vector<float>(values.size(), 0.0f)) << name;
    }
    ASSERT_EQ(run({"export-hf", directory_ / second, directory_ / kind.name + "-again"}), 0) << error_;
    expect_same_folders(kind.name, kind.name + "-again");
  }
}

// Loaded and saved again by 2 pipeline stages x 2 tensor-parallel halves: the same export.
TEST_F(HuggingFaceCommands, AMeshExportsTheSameBits) {
  for (const ModelKind& kind : model_kinds()) {
    if (!mesh_problems(kind.config, 2, 2).empty()) continue;
    SCOPED_TRACE(kind.name);
    const std::string whole = kind.name + "-whole", mesh_run = kind.name + "-mesh";
    const std::string path = save(whole, kind.config, random_parameters(kind.config));
    run_as_ranks(4, [&](Communicator& world) {
      Mesh mesh(world, {.pp = 2, .dp = 1, .cp = 1, .tp = 2});
      const Shard shard = Shard::of(kind.config, 2, mesh.coordinate().tp);
      Network network(kind.config, shard,
                      cut_layers(kind.config, 16, 2)[static_cast<size_t>(mesh.coordinate().pp)], mesh.tp(),
                      16, &mesh.tp_share(shard.groups.num_copies));
      network.parameters().allocate(false);
      std::vector<CheckpointTensor> tensors;
      for (const Parameter& p : network.parameters().all())
        tensors.push_back({.name = p.spec.name,
                           .kind = TensorKind::master,
                           .global_shape = p.spec.global_shape,
                           .offset = p.spec.box.offset,
                           .extent = p.spec.box.extent,
                           .data = p.weight,
                           .owner = p.spec.owner});
      const LoadedCheckpoint loaded = load_checkpoint(world, files_, path, tensors);
      save_checkpoint(world, files_, directory_ / mesh_run + "/checkpoints", loaded.state, loaded.text,
                      tensors);
    });
    ASSERT_EQ(run({"export-hf", directory_ / whole, directory_ / whole + "-hf"}), 0) << error_;
    ASSERT_EQ(run({"export-hf", directory_ / mesh_run, directory_ / mesh_run + "-hf"}), 0) << error_;
    expect_same_folders(whole + "-hf", mesh_run + "-hf");
  }
}

TEST_F(HuggingFaceCommands, Bf16RoundsOnce) {
  const ModelKind kind = model_kinds().front();
  save("run", kind.config, random_parameters(kind.config));
  ASSERT_EQ(run({"export-hf", directory_ / "run", directory_ / "a", "--dtype", "bf16"}), 0) << error_;
  EXPECT_EQ(parsed("a/config.json")["torch_dtype"], "bfloat16");
  Parameters expected = random_parameters(kind.config);
  for (auto& [name, values] : expected) {
    for (float& value : values) value = float_from_bf16(bf16_from_float(value));
  }
  EXPECT_EQ(read_hugging_face(files_, directory_ / "a").parameters, expected);
  ASSERT_EQ(run({"import-hf", directory_ / "a", directory_ / "run2"}), 0) << error_;
  ASSERT_EQ(run({"export-hf", directory_ / "run2", directory_ / "b", "--dtype", "bf16"}), 0) << error_;
  expect_same_folders("a", "b");
}

TEST_F(HuggingFaceCommands, TokenizerAndPythonFilesGoAlong) {
  ModelConfig config = model_kinds().front().config;
  config.vocab_size = 300;
  BpeTrainer trainer({.vocab_size = 270});
  trainer.feed("the cat and the dog and the end");
  const Tokenizer tokenizer = trainer.train();
  save("run", config, random_parameters(config), tokenizer.to_json());
  ASSERT_EQ(run({"export-hf", directory_ / "run", directory_ / "a"}), 0) << error_;
  EXPECT_THAT(output_, HasSubstr("trust_remote_code"));
  EXPECT_EQ(contents("a/tokenizer.json"), tokenizer.to_json());
  EXPECT_EQ(parsed("a/special_tokens_map.json"),
            json({{"bos_token", "<|endoftext|>"}, {"eos_token", "<|endoftext|>"}}));
  EXPECT_EQ(parsed("a/tokenizer_config.json")["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(parsed("a/tokenizer_config.json")["eos_token"], "<|endoftext|>");
  EXPECT_EQ(parsed("a/config.json")["eos_token_id"], *tokenizer.end_of_document());
  EXPECT_EQ(parsed("a/generation_config.json")["eos_token_id"], *tokenizer.end_of_document());
  for (const char* name : {"cache_transxssm.py", "configuration_transxssm.py", "modeling_transxssm.py"})
    EXPECT_EQ(contents(std::string("a/") + name),
              TemporaryDirectory::read(std::string(SOURCE_TREE "/launch/hf/") + name));

  ASSERT_EQ(run({"import-hf", directory_ / "a", directory_ / "run2"}), 0) << error_;
  const std::string imported = directory_ / "run2/checkpoints/step-000000000";
  EXPECT_EQ(read_manifest(files_, imported).text.tokenizer_json, tokenizer.to_json());
  EXPECT_TRUE(verify_checkpoint(files_, imported).empty());
  // One that this program cannot run is left out.
  directory_.write("a/tokenizer.json", R"({"model": {"type": "Unigram"}})");
  ASSERT_EQ(run({"import-hf", directory_ / "a", directory_ / "run3"}), 0) << error_;
  EXPECT_EQ(read_manifest(files_, directory_ / "run3/checkpoints/step-000000000").text.tokenizer_json, "");
  // Ids that the model does not have.
  save("small", model_kinds().front().config, random_parameters(model_kinds().front().config));
  ASSERT_EQ(run({"export-hf", directory_ / "small", directory_ / "b"}), 0) << error_;
  directory_.write("b/tokenizer.json", tokenizer.to_json());
  EXPECT_EQ(run({"import-hf", directory_ / "b", directory_ / "run4"}), 4);
  EXPECT_THAT(error_, HasSubstr("vocab_size 37"));
  EXPECT_FALSE(files_.exists(directory_ / "run4"));
}

TEST_F(HuggingFaceCommands, BadFoldersAreRefusedAndNothingIsWritten) {
  const ModelConfig config = model_kinds().front().config;
  save("run", config, random_parameters(config));
  ASSERT_EQ(run({"export-hf", directory_ / "run", directory_ / "good"}), 0) << error_;
  const std::string weights = contents("good/model.safetensors");
  const auto refused = [&](const std::string& config_json, const std::string& file, const char* reason) {
    std::filesystem::create_directories(directory_ / "bad");
    directory_.write("bad/config.json", config_json);
    directory_.write("bad/model.safetensors", file);
    EXPECT_EQ(run({"import-hf", directory_ / "bad", directory_ / "out"}), 4);
    EXPECT_THAT(error_, HasSubstr(directory_ / "bad"));
    EXPECT_THAT(error_, HasSubstr(reason));
    EXPECT_EQ(error_.find('\n'), std::string::npos) << error_;
    EXPECT_FALSE(files_.exists(directory_ / "out"));
  };
  const json good = parsed("good/config.json");
  const auto with = [&](const char* field, const json& value) {
    json changed = good;
    changed[field] = value;
    return changed.dump();
  };
  refused("{", weights, "config.json:1:2: is not JSON");
  refused(with("model_type", "mamba"), weights, "config.json: model_type: \"mamba\" is not known");
  refused(with("ssd_skip", true), weights, "tensor model.layers.0.ssd.D [4] is missing");
  refused(with("learned_residual", false), weights, "post_sequence_residual.weight\" [32] is not part of");
  refused(with("vocab_size", 38), weights, "tensor model.word_embed.weight has shape [37, 32]");
  refused(with("tie_word_embeddings", false), weights, "tensor lm_head.weight is missing");
  refused(good.dump(), weights.substr(0, weights.size() - 4), "model.safetensors");
  std::string nan = weights;
  nan.replace(nan.size() - 4, 4, std::string{'\0', '\0', '\xC0', '\x7F'});
  refused(good.dump(), nan, "is nan at element");
  std::filesystem::remove(directory_ / "bad/config.json");
  EXPECT_EQ(run({"import-hf", directory_ / "bad", directory_ / "out"}), 4);
  EXPECT_EQ(run({"import-hf", directory_ / "nowhere", directory_ / "out"}), 4);
  EXPECT_FALSE(files_.exists(directory_ / "out"));
  EXPECT_EQ(run({"import-hf", directory_ / "good", directory_ / "run"}), 2);  // there is a run
  EXPECT_THAT(error_, HasSubstr("not empty"));
}

// The files of others: a folder of `tensors` under names of the library, with config.json of `config`.
class ForeignFolders : public HuggingFaceCommands {
 protected:
  using Tensors = std::vector<WeightSource>;

  Tensors tensors(const ModelConfig& config) const {
    Tensors list;
    for (const HfTensor& tensor : hugging_face_tensors(config))
      list.push_back(source(tensor.name, tensor.shape, values_of(tensor)));
    return list;
  }
  static std::vector<float> values_of(const HfTensor& tensor) {
    std::vector<float> values(static_cast<size_t>(tensor.shape.num_elements()));
    const Rng rng(7, tensor.name);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(rng.uniform(i) - 0.5);
    return values;
  }
  static WeightSource source(const std::string& name, const Shape& shape, std::vector<float> values) {
    return {name, shape, [values = std::move(values)] { return values; }};
  }
  // Imports the folder of these; the exit code.
  int import(const std::string& config_json, const Tensors& list, int64_t shard_bytes = 1 << 30) {
    const std::string folder = fmt::format("foreign-{}", ++count_);
    write_weight_folder(files_, directory_ / folder, std::vector<FolderText>{{"config.json", config_json}},
                        list, DType::f32, shard_bytes);
    return run({"import-hf", directory_ / folder, run_directory()});
  }
  std::string run_directory() const { return directory_ / fmt::format("run-{}", count_); }
  std::string imported() {
    EXPECT_EQ(run({"export-hf", run_directory(), run_directory() + "-hf"}), 0) << error_;
    return TemporaryDirectory::read(run_directory() + "-hf/model.safetensors");
  }

  const ModelConfig llama_ = model_config_from_text(
      "vocab_size: 37 d_model: 32 num_layers: 2 num_heads: 4 d_ff: 24 attn_period: 1 attn_offset: 0 "
      "learned_residual: false");
  const ModelConfig mamba2_ = [] {
    for (const ModelKind& kind : model_kinds())
      if (kind.name == "mamba2") return kind.config;
    return ModelConfig();
  }();
  int count_ = 0;
};

TEST_F(ForeignFolders, ATiedHeadThatIsInTheFile) {
  for (const ModelConfig& tied : {llama_, mamba2_}) {
    const std::string config = model_config_to_hugging_face(tied, {});
    ASSERT_EQ(import(config, tensors(tied)), 0) << error_;
    const std::string plain = imported();
    Tensors with_copy = tensors(tied);
    with_copy.push_back(source("lm_head.weight", with_copy.front().shape, with_copy.front().values()));
    for (const int64_t shard_bytes : {1 << 30, 2000}) {
      ASSERT_EQ(import(config, with_copy, shard_bytes), 0) << error_;
      EXPECT_EQ(imported(), plain);
    }
    std::vector<float> other = with_copy.front().values();
    other.back() += 0.5f;
    with_copy.back() = source("lm_head.weight", with_copy.front().shape, other);
    EXPECT_EQ(import(config, with_copy), 4);
    EXPECT_THAT(error_, HasSubstr("model.safetensors: tensor lm_head.weight differs from"));
    EXPECT_THAT(error_, HasSubstr("set it to false"));
    EXPECT_FALSE(files_.exists(run_directory()));
    // Untied, the same folder is read with the head of its own.
    json untied = json::parse(config);
    untied["tie_word_embeddings"] = false;
    ASSERT_EQ(import(untied.dump(), with_copy), 0) << error_;
    EXPECT_EQ(read_hugging_face(files_, directory_ / fmt::format("foreign-{}", count_))
                  .parameters["lm_head.weight"],
              other);
    with_copy.back().shape = {1, tied.vocab_size * tied.d_model};
    EXPECT_EQ(import(config, with_copy), 4);
    EXPECT_THAT(error_, HasSubstr("tensor lm_head.weight has shape"));
    EXPECT_EQ(import(untied.dump(), tensors(tied)), 4);
    EXPECT_THAT(error_, HasSubstr("config.json must say tie_word_embeddings: true"));
  }
}

TEST_F(ForeignFolders, WhatIsComputedIsLeftAside) {
  const std::string config = model_config_to_hugging_face(llama_, {});
  ASSERT_EQ(import(config, tensors(llama_)), 0) << error_;
  const std::string plain = imported();
  Tensors extended = tensors(llama_);
  for (const char* name : {"model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
                           "model.layers.1.self_attn.rotary_emb.cos_cached", "model.embeddings.position_ids"})
    extended.push_back(source(name, {4}, {1, 2, 3, 4}));
  for (const int64_t shard_bytes : {1 << 30, 2000}) {
    ASSERT_EQ(import(config, extended, shard_bytes), 0) << error_;
    EXPECT_EQ(imported(), plain);
  }
  extended.push_back(source("model.layers.0.self_attn.my_inv_freq", {4}, {1, 2, 3, 4}));
  EXPECT_EQ(import(config, extended), 4);
  EXPECT_THAT(error_, HasSubstr("my_inv_freq\" [4] is not part of this model"));
}

TEST_F(ForeignFolders, ANetworkSavedWithoutItsHead) {
  for (const ModelConfig& tied : {llama_, mamba2_}) {
    const std::string config = model_config_to_hugging_face(tied, {});
    ASSERT_EQ(import(config, tensors(tied)), 0) << error_;
    const std::string plain = imported();
    const size_t prefix = std::string(hugging_face_prefix(hugging_face_format(tied))).size();
    Tensors bare = tensors(tied);
    for (WeightSource& tensor : bare) tensor.name = tensor.name.substr(prefix);
    ASSERT_EQ(import(config, bare), 0) << error_;
    EXPECT_EQ(imported(), plain);
    bare.front() = tensors(tied).front();  // half and half
    EXPECT_EQ(import(config, bare), 4);
  }
}

TEST_F(HuggingFaceCommands, BadCheckpointsAreRefusedAndNothingIsWritten) {
  const ModelConfig config = model_kinds().front().config;
  Parameters parameters = random_parameters(config);
  parameters["model.layers.0.ssd.A_log"][1] = NAN;
  save("nan", config, parameters);
  EXPECT_EQ(run({"export-hf", directory_ / "nan", directory_ / "out"}), 4);
  EXPECT_THAT(error_, HasSubstr("model.layers.0.ssd.A_log is nan at element 1"));
  EXPECT_FALSE(files_.exists(directory_ / "out"));

  const std::string path = save("run", config, random_parameters(config));
  ASSERT_EQ(run({"export-hf", path, directory_ / "out"}), 0) << error_;
  EXPECT_EQ(run({"export-hf", path, directory_ / "out"}), 2);
  EXPECT_THAT(error_, HasSubstr("exists already"));
  EXPECT_EQ(run({"export-hf", path, directory_ / "out2", "--dtype", "f16"}), 2);
  EXPECT_NE(run({"export-hf", directory_ / "nowhere", directory_ / "out2"}), 0);
  EXPECT_FALSE(files_.exists(directory_ / "out2"));
}

}  // namespace
}  // namespace transxssm
