#include "launch/commands/hugging_face.h"

#include <fmt/format.h>

#include "checkpoint/checkpoint.h"
#include "launch/checkpoint_path.h"
#include "launch/hugging_face.h"
#include "parallel/local.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

int export_model(const Arguments& arguments) {
  FileSystem& files = posix_file_system();
  const std::string source = arguments.text("CHECKPOINT"), output = arguments.text("OUTPUT");
  const std::string path = named_checkpoint(*single_rank(), files, source, checkpoints_of_run);
  export_hugging_face(files, path, output, arguments.text("--dtype") == "bf16" ? DType::bf16 : DType::f32);
  const ModelConfig config = model_config_from_text(read_manifest(files, path).text.model_config);
  const HfFormat format = hugging_face_format(config);
  fmt::print("{} is {} as model_type {}{}\n", output, path, hugging_face_model_type(format),
             format == HfFormat::transxssm ? "; load it with trust_remote_code=True" : "");
  return 0;
}

int import_model(const Arguments& arguments) {
  const std::string run = arguments.text("RUN_DIRECTORY");
  const std::string path = import_hugging_face(posix_file_system(), arguments.text("FOLDER"), run);
  fmt::print(
      "{} holds the weights of {}; the section model of a configuration that trains it further is in "
      "{}/config.textproto\n",
      path, arguments.text("FOLDER"), run);
  return 0;
}

}  // namespace

std::vector<Command> hugging_face_commands() {
  return {
      {.path = "checkpoint export-hf",
       .summary = "Writes a checkpoint's model as a folder that Hugging Face transformers loads",
       .example = "transxssm checkpoint export-hf runs/tiny exported --dtype bf16",
       .options = {{.name = "--dtype",
                    .value = "TYPE",
                    .help = "of the weights; bf16 rounds to nearest even",
                    .standard = "f32",
                    .choices = {"f32", "bf16"}}},
       .positionals = {{"CHECKPOINT", kCheckpointHelp}, {"OUTPUT", "the folder to make"}},
       .run = export_model},
      {.path = "checkpoint import-hf",
       .summary = "Makes a run directory from a model of Hugging Face: transxssm, llama or mamba2",
       .example = "transxssm checkpoint import-hf exported runs/imported",
       .positionals = {{"FOLDER", "holds config.json and safetensors files"},
                       {"RUN_DIRECTORY", "the directory to make"}},
       .run = import_model},
  };
}

}  // namespace transxssm
