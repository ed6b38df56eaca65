// Whole models in Hugging Face form, read into and written from our parameters.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/hugging_face.h"
#include "runtime/file_system.h"

namespace transxssm {

struct ImportedModel {
  ModelConfig config;
  std::map<std::string, std::vector<float>> parameters;  // our names, whole tensors, row-major
  std::string tokenizer_json;                            // empty where the folder has none
};

// Reads config.json, the weights and tokenizer.json of `folder`. Throws CheckpointError naming file, field or
// tensor.
ImportedModel read_hugging_face(FileSystem& files, const std::string& folder);

// Writes a checkpoint's model as a new folder `output`: config.json, generation_config.json, weights in
// `dtype`, tokenizer files where the checkpoint has a tokenizer, and the Python files of launch/hf where
// `transformers` does not know the model.
void export_hugging_face(FileSystem& files, const std::string& checkpoint, const std::string& output,
                         DType dtype);

// Makes the run directory `run` with a checkpoint of step 0 that holds the weights of `folder` and zero
// moments; returns the checkpoint's path.
std::string import_hugging_face(FileSystem& files, const std::string& folder, const std::string& run);

}  // namespace transxssm
