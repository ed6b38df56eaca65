// The form of a model in Hugging Face `transformers`: its config.json, and which of our parameters make up
// each of its tensors. Pure tables: no files (checkpoint/hugging_face.h), no weights. Heads and groups have
// one order everywhere and rotations are half-split on both sides, so nothing is permuted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "runtime/tensor.h"

namespace transxssm {

// Which class of `transformers` loads an export: its own Llama and Mamba-2 where they compute the same
// numbers, else our modelling file (launch/hf), loaded with trust_remote_code.
enum class HfFormat { transxssm, llama, mamba2 };
HfFormat hugging_face_format(const ModelConfig& config);
const char* hugging_face_model_type(HfFormat format);  // "transxssm", "llama", "mamba2"

// What names of tensors begin with, the head's left out: "model.", "backbone.". The library saves a network
// without its head under names without it.
const char* hugging_face_prefix(HfFormat format);

// Special tokens of config.json and generation_config.json; null in the file where there is none.
struct HfTokens {
  std::optional<int32_t> bos, eos, pad;
};

// Reads config.json of model_type transxssm, llama or mamba2. Throws CheckpointError naming the field and its
// legal values for what is missing, of the wrong type, contradictory, or not computed by this program.
ModelConfig model_config_from_hugging_face(std::string_view config_json);

// config.json of an export whose weights have `dtype` (f32 or bf16). Reading it gives a configuration of the
// same network back. num_kv_heads and num_groups equal to num_heads, and a head_dim of d_model / num_heads,
// come back as 0, the form of presets.
std::string model_config_to_hugging_face(const ModelConfig& config, const HfTokens& tokens,
                                         DType dtype = DType::f32);

// generation_config.json.
std::string generation_config_to_hugging_face(const HfTokens& tokens);

// One of our parameters: its name in checkpoints and its whole shape.
struct HfPart {
  std::string name;
  Shape shape;
};

// A tensor of the export: the parts stacked along dim 0, seen in `shape` (the same number of elements).
struct HfTensor {
  std::string name;
  Shape shape;
  std::vector<HfPart> parts;
};

// Every tensor of the export, in the order of computation. Every parameter is part of exactly one; a tied
// head is left out. For a configuration without problems().
std::vector<HfTensor> hugging_face_tensors(const ModelConfig& config);

}  // namespace transxssm
