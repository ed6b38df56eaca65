#include "model/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "model/network.h"
#include "parallel/local.h"
#include "tests/support/model_kinds.h"

namespace transxssm {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::string format_name(const ModelConfig& config) {
  return hugging_face_model_type(hugging_face_format(config));
}

TEST(HuggingFaceConfig, EveryKindComesBackAsItWas) {
  std::vector<ModelKind> kinds = model_kinds();
  for (const std::string& name : model_preset_names()) kinds.push_back({name, model_preset(name)});
  for (const ModelKind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    ASSERT_TRUE(problems(kind.config).empty());
    const std::string text = model_config_to_hugging_face(kind.config, {});
    ModelConfig expected = kind.config;
    // What a kind does not use is not written.
    const HfFormat format = hugging_face_format(kind.config);
    if (format == HfFormat::llama) {
      expected.d_state = ModelConfig().d_state;
      expected.chunk = ModelConfig().chunk;
    }
    EXPECT_EQ(to_text(model_config_from_hugging_face(text)), to_text(expected));
    EXPECT_EQ(json::parse(text)["model_type"], hugging_face_model_type(format));
  }
}

TEST(HuggingFaceConfig, TheLibrarysOwnFormatsWhereTheyComputeTheSame) {
  for (const ModelKind& kind : model_kinds()) {
    const std::string expected = kind.name.starts_with("llama")    ? "llama"
                                 : kind.name.starts_with("mamba2") ? "mamba2"
                                                                   : "transxssm";
    EXPECT_EQ(format_name(kind.config), expected) << kind.name;
  }
  const auto changed = [](const char* name, auto&& change) {
    ModelConfig config = model_preset(name);
    change(config);
    return format_name(config);
  };
  EXPECT_EQ(changed("llama-320m", [](ModelConfig& c) { c.learned_residual = true; }), "transxssm");
  EXPECT_EQ(changed("llama-320m", [](ModelConfig& c) { c.log_n_scale = true; }), "transxssm");
  EXPECT_EQ(changed("llama-320m", [](ModelConfig& c) { c.attention_rope = false; }), "transxssm");
  EXPECT_EQ(changed("llama-320m", [](ModelConfig& c) { c.d_ff = 0; }), "transxssm");
  EXPECT_EQ(changed("llama-320m", [](ModelConfig& c) { c.rope_scaling = RopeScaling::yarn; }), "llama");
  // The library's dynamic scaling starts from max_position_embeddings.
  EXPECT_EQ(changed("llama-320m",
                    [](ModelConfig& c) {
                      c.rope_scaling = RopeScaling::dynamic;
                      c.rope_original_length = 512;
                    }),
            "transxssm");
  EXPECT_EQ(changed("mamba2-320m", [](ModelConfig& c) { c.d_skip = false; }), "transxssm");
  EXPECT_EQ(changed("mamba2-320m", [](ModelConfig& c) { c.ssd_gate = false; }), "transxssm");
  EXPECT_EQ(changed("mamba2-320m", [](ModelConfig& c) { c.d_ff = 64; }), "transxssm");
  EXPECT_EQ(changed("mamba2-320m", [](ModelConfig& c) { c.ssd_position = SsdPosition::none; }), "transxssm");
}

TEST(HuggingFaceConfig, FieldsOfOurModelType) {
  const json config = json::parse(model_config_to_hugging_face(
      model_config_from_text(
          "vocab_size: 131 d_model: 64 num_layers: 2 num_heads: 4 d_ff: 112 d_state: 32 chunk: 16 "
          "attn_period: 2 attn_offset: 1 rope_scaling: 'yarn' rope_original_length: 16"),
      {.bos = 3, .eos = 4, .pad = {}}, DType::bf16));
  EXPECT_EQ(config, json::parse(R"({
    "model_type": "transxssm", "architectures": ["TransXSSMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_transxssm.TransXSSMConfig",
                 "AutoModelForCausalLM": "modeling_transxssm.TransXSSMForCausalLM"},
    "vocab_size": 131, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "log_n_scale": false, "max_position_embeddings": 2048, "attn_layer_period": 2, "attn_layer_offset": 1,
    "attention_position": "rope", "ssd_state_size": 32, "ssd_num_groups": 4, "ssd_chunk_size": 16,
    "ssd_expand": 1, "ssd_position": "rope", "ssd_gate": false, "ssd_skip": false, "ssd_conv_kernel": 4,
    "learned_residual": true, "initializer_range": 0.02, "hidden_act": "silu", "head_dim": 16,
    "attention_bias": false, "mlp_bias": false,
    "bos_token_id": 3, "eos_token_id": 4, "pad_token_id": null, "torch_dtype": "bfloat16"})"));
  EXPECT_EQ(json::parse(generation_config_to_hugging_face({.bos = 3, .eos = 4, .pad = {}})),
            json::parse(R"({"_from_model_config": true, "bos_token_id": 3, "eos_token_id": 4})"));
}

// As transformers 5 writes them: frequencies in rope_parameters, infinity in two ways.
const char* const kLlama = R"({"model_type": "llama", "vocab_size": 131, "hidden_size": 64,
  "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 2048, "pretraining_tp": 1,
  "rms_norm_eps": 1e-05, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
  "rope_parameters": {"factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 500000.0,
                      "rope_type": "yarn"}})";
const char* const kMamba2 = R"({"model_type": "mamba2", "vocab_size": 131, "hidden_size": 64,
  "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16, "state_size": 32, "n_groups": 2, "expand": 2,
  "conv_kernel": 4, "use_bias": false, "use_conv_bias": true, "chunk_size": 16, "layer_norm_epsilon": 1e-05,
  "tie_word_embeddings": false, "hidden_act": "silu", "time_step_limit": [0.0, Infinity]})";

TEST(HuggingFaceConfig, WhatTransformersWrites) {
  EXPECT_EQ(model_config_from_hugging_face(kLlama),
            model_config_from_text(
                "vocab_size: 131 d_model: 64 num_layers: 2 num_heads: 4 num_kv_heads: 2 d_ff: 112 "
                "attn_period: 1 attn_offset: 0 learned_residual: false tie_embeddings: false norm_eps: 1e-5 "
                "rope_base: 5e5 rope_scaling: 'yarn' rope_original_length: 512"));
  const ModelConfig mamba2 = model_config_from_text(
      "vocab_size: 131 d_model: 64 num_layers: 3 num_heads: 4 num_groups: 2 d_ff: 0 d_state: 32 chunk: 16 "
      "attn_period: 0 attn_offset: 0 learned_residual: false tie_embeddings: false norm_eps: 1e-5 "
      "ssd_position: 'conv1d' ssd_expand: 2 ssd_gate: true d_skip: true attention_rope: false");
  EXPECT_EQ(model_config_from_hugging_face(kMamba2), mamba2);
  std::string text = kMamba2;
  text.replace(text.find("Infinity"), 8, R"({"__float__": "Infinity"})");
  EXPECT_EQ(model_config_from_hugging_face(text), mamba2);
  // Older files: another name of rope_type, and the ends of the rotation from the longest row.
  const ModelConfig old = model_config_from_hugging_face(
      R"({"model_type": "llama", "vocab_size": 131, "hidden_size": 64, "intermediate_size": 112,
          "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 4096,
          "rope_scaling": {"type": "dynamic", "factor": 2}})");
  EXPECT_EQ(old.rope_scaling, RopeScaling::dynamic);
  EXPECT_EQ(old.rope_scaling_factor, 2);
  EXPECT_EQ(old.rope_original_length, 4096);
  EXPECT_EQ(old.kv_heads(), 4);
  EXPECT_FALSE(old.tie_embeddings);
}

// Llama 3.2's shape in small: heads wider than hidden_size / num_attention_heads, its frequencies, biases.
TEST(HuggingFaceConfig, HeadsFrequenciesAndBiasesOfLlama3) {
  const char* const fields =
      "vocab_size: 131 d_model: 64 num_layers: 2 num_heads: 6 num_kv_heads: 2 d_ff: 112 "
      "attn_period: 1 attn_offset: 0 learned_residual: false tie_embeddings: true "
      "norm_eps: 1e-5 rope_base: 5e5 rope_scaling: 'llama3' rope_scaling_factor: 32 "
      "rope_low_freq_factor: 1 rope_high_freq_factor: 4 rope_original_length: 8192 "
      "max_position_embeddings: 131072 head_dim: 16 attention_bias: true mlp_bias: true";
  const auto config = [](const std::string& rope) {
    return model_config_from_hugging_face(
        R"({"model_type": "llama", "vocab_size": 131, "hidden_size": 64, "intermediate_size": 112,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "attention_bias": true, "mlp_bias": true, )" +
        rope + "}");
  };
  const std::string scaling = R"("factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 8192)";
  const ModelConfig expected = model_config_from_text(fields);
  for (const char* spelling : {"rope_type", "type"})
    EXPECT_EQ(config(fmt::format(R"("rope_theta": 5e5, "rope_scaling": {{{}, "{}": "llama3"}})", scaling,
                                 spelling)),
              expected);
  EXPECT_EQ(config(fmt::format(R"("rope_parameters": {{"rope_theta": 500000, "rope_type": "llama3", {}}})",
                               scaling)),
            expected);
  EXPECT_EQ(config(fmt::format(
                R"("rope_theta": 5e5, "rope_parameters": {{"rope_type": "llama3", "type": "llama3", {}}})",
                scaling)),
            expected);
  const json written = json::parse(model_config_to_hugging_face(expected, {}));
  EXPECT_EQ(written["head_dim"], 16);
  EXPECT_EQ(written["attention_bias"], true);
  EXPECT_EQ(written["rope_scaling"], json::parse("{\"rope_type\": \"llama3\", " + scaling + "}"));
}

// `field` of `config` with another value is refused in words that have `reason`.
void refused(const char* config, const std::string& field, const json& value, const char* reason) {
  std::string text = config;
  if (const size_t infinity = text.find("Infinity"); infinity != std::string::npos)
    text.replace(infinity, 8, "\"Infinity\"");
  json edited = json::parse(text);
  if (value.is_discarded())
    edited.erase(field);
  else
    edited[json::json_pointer("/" + field)] = value;
  try {
    model_config_from_hugging_face(edited.dump());
    ADD_FAILURE() << field << " = " << value << " was read";
  } catch (const CheckpointError& error) {
    const std::string name = field.substr(field.rfind('/') + 1);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("config.json: "), HasSubstr(name), HasSubstr(reason)));
  }
}

TEST(HuggingFaceConfig, WhatIsNotComputedIsRefused) {
  const json missing(json::value_t::discarded);
  refused(kLlama, "model_type", "mistral", "legal values are transxssm, llama, mamba2");
  refused(kLlama, "model_type", missing, "is missing");
  refused(kLlama, "hidden_size", missing, "is missing");
  refused(kLlama, "hidden_size", 64.5, "not a whole number");
  refused(kLlama, "hidden_size", "64", "not a whole number");
  refused(kLlama, "hidden_size", uint64_t{1} << 63, "not a whole number");
  refused(kLlama, "hidden_size", int64_t{1} << 62, "out of range");
  refused(kLlama, "num_hidden_layers", -1, "out of range");
  refused(kLlama, "num_attention_heads", 5, "nearest legal");
  refused(kLlama, "num_attention_heads", 0, "num_attention_heads");
  refused(kLlama, "num_key_value_heads", 3, "does not divide num_attention_heads 4");
  refused(kLlama, "num_key_value_heads", 0, "out of range");
  refused(kLlama, "intermediate_size", 0, "at least 1");
  refused(kLlama, "head_dim", 0, "out of range");
  refused(kLlama, "head_dim", 15, "not a multiple of 2");
  refused(kLlama, "head_dim", 16.0, "not a whole number");
  refused(kLlama, "hidden_act", "gelu", "the legal value is \"silu\"");
  refused(kLlama, "attention_bias", 1, "true nor false");
  refused(kLlama, "mlp_bias", "yes", "true nor false");
  refused(kLlama, "num_hidden_layers", true, "not a whole number");
  refused(kLlama, "tie_word_embeddings", "yes", "true nor false");
  refused(kLlama, "rms_norm_eps", 0.0, "out of range");
  refused(kLlama, "rope_theta", 1e4, "contradicts");
  refused(kLlama, "rope_scaling", json::object({{"rope_type", "linear"}}), "contradicts rope_parameters");
  refused(kLlama, "rope_parameters", 7, "not an object");
  refused(kLlama, "rope_parameters/rope_type", "longrope",
          "legal values are default, linear, dynamic, yarn, llama3");
  refused(kLlama, "rope_parameters/type", "linear", "contradicts rope_type \"yarn\"");
  refused(kLlama, "rope_parameters/full_attention", json::object(), "is an object");
  refused(kLlama, "rope_parameters", {{"rope_type", "llama3"}, {"factor", 8}, {"high_freq_factor", 4}},
          "rope_parameters.low_freq_factor: is missing");
  refused(kLlama, "rope_parameters",
          {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 1}, {"high_freq_factor", 4}},
          "original_max_position_embeddings: is missing");
  refused(kLlama, "rope_parameters",
          {{"rope_type", "dynamic"}, {"factor", 2}, {"original_max_position_embeddings", 512}},
          "the legal value is 2048");
  refused(kLlama, "rope_parameters/factor", "4", "not a number");
  refused(kLlama, "rope_parameters/factor", 0.5, "at least 1");
  refused(kLlama, "rope_parameters/beta_fast", 16, "the legal value is 32");
  refused(kLlama, "rope_parameters/attention_factor", 1.5, "the legal value is 1.13");
  refused(kLlama, "partial_rotary_factor", 0.5, "the legal value is 1");
  refused(kLlama, "quantization_config", json::object(), "quantized");
  refused(kMamba2, "num_heads", 7, "the legal value is 8");
  refused(kMamba2, "head_dim", 24, "does not divide hidden_size 64");
  refused(kMamba2, "head_dim", 0, "out of range");
  refused(kMamba2, "n_groups", 3, "does not divide");
  refused(kMamba2, "use_bias", true, "the legal value is false");
  refused(kMamba2, "use_conv_bias", false, "the legal value is true");
  refused(kMamba2, "rms_norm", false, "the legal value is true");
  refused(kMamba2, "conv_kernel", 99, "out of range");
  refused(kMamba2, "state_size", 7, "state_size");
  refused(kMamba2, "time_step_limit", {0.0, 0.1}, "the legal value is [0.0, Infinity]");
  const std::string ours = model_config_to_hugging_face(model_kinds().front().config, {});
  refused(ours.c_str(), "ssd_position", "alibi", "legal values are rope, conv1d, none");
  refused(ours.c_str(), "attention_position", "conv1d", "legal values are none, rope");
  refused(ours.c_str(), "layer_pattern", "SSX", "legal letters are A and S");
  refused(ours.c_str(), "attn_layer_offset", 9, "nearest legal");
  refused(ours.c_str(), "ssd_num_groups", 3, "does not divide");
  refused(ours.c_str(), "ssd_gate", 1, "true nor false");
}

TEST(HuggingFaceConfig, WhatIsNotJsonIsRefused) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("{} x"), std::string(1'000'000, '['),
        std::string(2'000'000, ' '), std::string(R"({"model_type": "llama", "model_type": "llama"})"),
        std::string("{\"model_type\": \"\xff\"}"), std::string("{\"vocab_size\": 1e999}")})
    EXPECT_THROW(model_config_from_hugging_face(text), CheckpointError) << text.substr(0, 40);
}

// As deep as the file's size allows: a stack would not bear it.
TEST(HuggingFaceConfig, DepthIsLimitedAndTextIsMadeFitToShow) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      model_config_from_hugging_face(text);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "read";
  };
  std::string deep = R"({"model_type": "llama", "hidden_act": )";
  for (int i = 0; i < 200'000; ++i) deep += "[";
  EXPECT_THAT(message(deep), HasSubstr("nested more than 16 deep at hidden_act"));
  const std::string escape = message("{\"model_type\": \"\\u001b[2J\xc2\x9b\"}");
  EXPECT_THAT(escape, HasSubstr("model_type: "));
  EXPECT_EQ(escape.find('\x1b'), std::string::npos);
  EXPECT_EQ(escape.find("\xc2\x9b"), std::string::npos);
}

TEST(HuggingFaceTensors, EveryParameterIsPartOfOne) {
  for (const ModelKind& kind : model_kinds()) {
    SCOPED_TRACE(kind.name);
    const ModelConfig& config = kind.config;
    const auto alone = single_rank();
    const Network network(config, Shard::of(config, 1, 0),
                          StageCut{.num_layers = static_cast<int>(config.num_layers)}, *alone, 8);
    std::map<std::string, Shape> ours;
    for (const Parameter& p : network.parameters().all()) ours[p.spec.name] = p.spec.global_shape;
    std::map<std::string, int> names;
    for (const HfTensor& tensor : hugging_face_tensors(config)) {
      EXPECT_EQ(++names[tensor.name], 1) << tensor.name;
      int64_t rows = 0, elements = 0;
      for (const HfPart& part : tensor.parts) {
        ASSERT_TRUE(ours.contains(part.name)) << part.name;
        EXPECT_EQ(ours[part.name], part.shape) << part.name;
        rows += part.shape[0];
        elements += part.shape.num_elements();
        ours.erase(part.name);
      }
      EXPECT_EQ(tensor.shape[0], rows);
      EXPECT_EQ(tensor.shape.num_elements(), elements);
    }
    for (const auto& [name, shape] : ours) ADD_FAILURE() << name << " is left out";
  }
}

std::vector<std::string> part_names(const HfTensor& tensor) {
  std::vector<std::string> names;
  for (const HfPart& part : tensor.parts) names.push_back(part.name);
  return names;
}

// The names of transformers, each beside ours: equal shapes would hide two that changed places.
TEST(HuggingFaceTensors, NamesOfALlamaLayer) {
  std::map<std::string, std::string> ours;
  for (const HfTensor& tensor : hugging_face_tensors(model_config_from_hugging_face(kLlama)))
    if (tensor.name.starts_with("model.layers.1."))
      ours[tensor.name.substr(15)] = part_names(tensor).at(0).substr(15);
  const std::map<std::string, std::string> expected = {
      {"input_layernorm.weight", "pre_sequence_layernorm.weight"},
      {"self_attn.q_proj.weight", "attn.q_proj.weight"},
      {"self_attn.k_proj.weight", "attn.k_proj.weight"},
      {"self_attn.v_proj.weight", "attn.v_proj.weight"},
      {"self_attn.o_proj.weight", "attn.o_proj.weight"},
      {"post_attention_layernorm.weight", "pre_state_layernorm.weight"},
      {"mlp.gate_proj.weight", "feed_forward.gate_proj.weight"},
      {"mlp.up_proj.weight", "feed_forward.up_proj.weight"},
      {"mlp.down_proj.weight", "feed_forward.down_proj.weight"}};
  EXPECT_EQ(ours, expected);
}

TEST(HuggingFaceTensors, FusedOnesHaveTheLibrarysOrder) {
  const std::string ours = "model.layers.1.ssd.";
  for (const HfTensor& tensor : hugging_face_tensors(model_config_from_hugging_face(kMamba2))) {
    if (tensor.name == "backbone.layers.1.mixer.in_proj.weight") {
      EXPECT_EQ(tensor.shape, (Shape{2 * 128 + 2 * 2 * 32 + 8, 64}));
      EXPECT_THAT(part_names(tensor),
                  testing::ElementsAre(ours + "z_proj.weight", ours + "x_proj.weight", ours + "b_proj.weight",
                                       ours + "c_proj.weight", ours + "dt_proj.weight"));
    }
    if (tensor.name == "backbone.layers.1.mixer.conv1d.weight") {
      EXPECT_EQ(tensor.shape, (Shape{128 + 2 * 2 * 32, 1, 4}));
      EXPECT_THAT(part_names(tensor), testing::ElementsAre(ours + "x_conv.weight", ours + "b_conv.weight",
                                                           ours + "c_conv.weight"));
    }
    if (tensor.name == "backbone.layers.1.norm.weight") {
      EXPECT_THAT(part_names(tensor), testing::ElementsAre("model.layers.1.pre_sequence_layernorm.weight"));
    }
    if (tensor.name == "backbone.layers.1.mixer.norm.weight") {
      EXPECT_THAT(part_names(tensor), testing::ElementsAre(ours + "norm.weight"));
    }
  }
}

}  // namespace
}  // namespace transxssm
