#include "launch/commands/checkpoint.h"

#include <fmt/chrono.h>

#include <chrono>
#include <cstdio>
#include <ctime>

#include "checkpoint/checkpoint.h"
#include "launch/checkpoint_path.h"
#include "parallel/local.h"
#include "runtime/format.h"

namespace transxssm {
namespace {

std::string saved_at(const TrainState& state) {
  return fmt::format("{:%Y-%m-%d %H:%M:%S} UTC",
                     fmt::gmtime(static_cast<std::time_t>(state.wall_time_ns / 1'000'000'000)));
}

std::string mesh_text(const SavedMesh& mesh) {
  return fmt::format("dp {} x tp {} x pp {} x cp {}", mesh.dp, mesh.tp, mesh.pp, mesh.cp);
}

// All that a user's path names, newest first.
std::vector<CheckpointInfo> named_infos(FileSystem& files, const std::string& path) {
  const NamedCheckpoints place = find_checkpoints(files, path, checkpoints_of_run);
  if (!place.checkpoint.empty()) return {examine_checkpoint(files, place.checkpoint)};
  return list_checkpoints(files, place.directory);
}

int list(const Arguments& arguments) {
  FileSystem& files = posix_file_system();
  const std::vector<CheckpointInfo> infos = named_infos(files, arguments.text("DIR"));
  if (infos.empty()) fmt::print("no checkpoints in {}\n", arguments.text("DIR"));
  for (const CheckpointInfo& info : infos) {
    if (!info.valid) {
      fmt::print("step {:>9}  {}  {}\n", info.step,
                 info.committed ? "damaged: " : "not committed: ", info.reason);
      continue;
    }
    const LoadedCheckpoint loaded = read_manifest(files, info.path);
    fmt::print("step {:>9}  {:>10}  {}  loss {:.4f}  {} tokens  {}  {}\n", info.step,
               format_bytes(loaded.bytes), saved_at(loaded.state), loaded.state.loss,
               loaded.state.consumed_tokens, mesh_text(loaded.state.mesh), info.path);
  }
  return 0;
}

int inspect(const Arguments& arguments) {
  FileSystem& files = posix_file_system();
  const LoadedCheckpoint loaded = read_manifest(
      files, named_checkpoint(*single_rank(), files, arguments.text("DIR"), checkpoints_of_run));
  const TrainState& state = loaded.state;
  int64_t parameters = 0;
  for (const TensorInfo& tensor : loaded.tensors) {
    if (tensor.kind == TensorKind::master && tensor.tied_to.empty())
      parameters += tensor.global_shape.num_elements();
  }
  fmt::print("checkpoint        {}\nsaved             {}\nstep              {}\nsamples, tokens   {}, {}\n",
             loaded.path, saved_at(state), state.step, state.consumed_samples, state.consumed_tokens);
  fmt::print("seed              {}\nlearning rate     {}\nloss              {}\nmesh              {}\n",
             state.seed, state.learning_rate, state.loss, mesh_text(state.mesh));
  fmt::print("run               {}\ndata digest       {}\ntokenizer digest  {}\n", state.run_uuid,
             state.data_digest, state.tokenizer_digest);
  fmt::print("parameters        {}\ntensors, files    {}, {}\nsize              {} ({} bytes)\n", parameters,
             loaded.tensors.size(), loaded.num_files, format_bytes(loaded.bytes), loaded.bytes);
  if (arguments.flag("--tensors")) {
    for (const TensorInfo& tensor : loaded.tensors) {
      fmt::print("{:<10}  {:<4}  {:<20}  {}{}\n", tensor_kind_name(tensor.kind), dtype_name(tensor.dtype),
                 tensor.global_shape.to_string(), tensor.name,
                 tensor.tied_to.empty() ? "" : " = " + tensor.tied_to);
    }
  }
  if (arguments.flag("--config")) fmt::print("{}", loaded.text.config_textproto);
  return 0;
}

// False where the checkpoint is damaged.
bool verify_one(const std::string& path) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<std::string> problems = verify_checkpoint(posix_file_system(), path);
  if (!problems.empty()) {
    fmt::print("{}: damaged\n", path);
    for (const std::string& problem : problems) fmt::print("  {}\n", problem);
    return false;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const LoadedCheckpoint loaded = read_manifest(posix_file_system(), path);
  fmt::print("{}: whole; {} files, {} bytes, {:.2f} GB/s\n", path, loaded.num_files, loaded.bytes,
             static_cast<double>(loaded.bytes) / seconds.count() / 1e9);
  return true;
}

int verify(const Arguments& arguments) {
  FileSystem& files = posix_file_system();
  const std::vector<CheckpointInfo> infos = named_infos(files, arguments.text("DIR"));
  if (infos.empty()) throw CheckpointError("{}: there is no checkpoint", arguments.text("DIR"));
  bool whole = true;
  for (const CheckpointInfo& info : infos) whole = verify_one(info.path) && whole;
  return static_cast<int>(whole ? ExitCode::ok : ExitCode::checkpoint);
}

}  // namespace

std::vector<Command> checkpoint_commands() {
  const Positional directory{"DIR",
                             "a checkpoint, a directory of checkpoints or a run directory, or a link to one"};
  return {
      {.path = "checkpoint ls",
       .summary = "Lists the checkpoints of a run, newest first",
       .example = "transxssm checkpoint ls runs/tiny",
       .positionals = {directory},
       .run = list},
      {.path = "checkpoint inspect",
       .summary = "Shows what one checkpoint, or the newest of a run, holds",
       .example = "transxssm checkpoint inspect runs/tiny --tensors",
       .options = {{.name = "--tensors", .help = "also every tensor with its kind, dtype and shape"},
                   {.name = "--config", .help = "also the configuration it was trained with"}},
       .positionals = {directory},
       .run = inspect},
      {.path = "checkpoint verify",
       .summary = "Reads every byte of one checkpoint, or of all of a run, and compares checksums",
       .example = "transxssm checkpoint verify runs/tiny",
       .positionals = {directory},
       .run = verify},
  };
}

}  // namespace transxssm
