// Saving. The order of the steps is what makes a crash harmless: data, then manifest, then COMMIT, each
// synced, and only then the one rename that makes the directory a checkpoint.
#include <chrono>
#include <map>
#include <system_error>

#include "checkpoint/agreement.h"
#include "checkpoint/catalog.h"
#include "checkpoint/layout.h"
#include "checkpoint/plan.h"
#include "checkpoint/shard_writer.h"
#include "runtime/crc32c.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

constexpr int64_t kSlackBytes = int64_t{1} << 20;  // for manifest, tables and directories

using TensorKey = std::pair<std::string, TensorKind>;

// What all ranks together save.
struct SavePlan {
  std::vector<TensorInfo> tensors;
  std::vector<OwnedBox> mine;
  int64_t bytes = 0;  // of all ranks
};

std::string argument_problem(const CheckpointTensor& tensor) {
  const std::string problem = name_problem(tensor.name);
  if (!problem.empty()) return problem;
  const auto volume = checked_volume(tensor.extent);
  if (!volume || !checked_volume(tensor.global_shape) ||
      !is_inside({tensor.offset, tensor.extent}, tensor.global_shape)) {
    return fmt::format("tensor {}: extent {} at {} is not inside of {}", tensor.name,
                       tensor.extent.to_string(), tensor.offset.to_string(), tensor.global_shape.to_string());
  }
  if (*volume > 0 && (tensor.data.shape() != tensor.extent || !tensor.data.is_contiguous())) {
    return fmt::format("tensor {}: data {} is not a contiguous box of extent {}", tensor.name,
                       tensor.data.shape().to_string(), tensor.extent.to_string());
  }
  return "";
}

bool is_saved(const CheckpointTensor& tensor) {
  return tensor.owner && tensor.tied_to.empty() && tensor.extent.num_elements() > 0;
}

Declaration declare(std::span<const CheckpointTensor> tensors) {
  Declaration declaration;
  std::map<TensorKey, size_t> seen;
  std::vector<OwnedBox> boxes;
  for (const CheckpointTensor& tensor : tensors) {
    declaration.problem = argument_problem(tensor);
    if (!declaration.problem.empty()) return declaration;
    const auto [at, is_new] = seen.try_emplace({tensor.name, tensor.kind}, declaration.tensors.size());
    if (is_new) {
      declaration.tensors.push_back(
          {{tensor.name, tensor.kind, tensor.global_shape, tensor.data.dtype(), tensor.tied_to}, 0});
    }
    if (is_saved(tensor)) {
      declaration.tensors[at->second].owned_elements += tensor.extent.num_elements();
      boxes.push_back({&tensor, 0});
    }
  }
  declaration.bytes = data_file_bytes(boxes);
  return declaration;
}

// Every rank sees every declaration, so all come to the same plan or the same error.
SavePlan agree_on_tensors(Communicator& comm, std::span<const CheckpointTensor> tensors) {
  std::map<TensorKey, Declaration::Entry> all;
  SavePlan plan;
  std::vector<std::string> problems;
  const std::vector<std::string> messages = all_gather_bytes(comm, encode_declaration(declare(tensors)));
  for (size_t r = 0; r < messages.size(); ++r) {
    const Declaration declaration = decode_declaration(messages[r]);
    plan.bytes += declaration.bytes;
    if (!declaration.problem.empty()) problems.push_back(fmt::format("rank {}: {}", r, declaration.problem));
    for (const Declaration::Entry& entry : declaration.tensors) {
      const auto [at, is_new] = all.try_emplace({entry.info.name, entry.info.kind}, entry);
      if (is_new) continue;
      Declaration::Entry& first = at->second;
      if (first.info.global_shape != entry.info.global_shape || first.info.tied_to != entry.info.tied_to) {
        problems.push_back(
            fmt::format("rank {}: tensor {} differs from that of other ranks", r, entry.info.name));
      }
      // A rank that holds nothing of the tensor does not know its dtype.
      if (first.owned_elements == 0) first.info.dtype = entry.info.dtype;
      first.owned_elements += entry.owned_elements;
    }
  }
  std::map<TensorKey, int> ids;
  for (const auto& [key, entry] : all) {
    const int64_t expected = entry.info.tied_to.empty() ? entry.info.global_shape.num_elements() : 0;
    if (entry.owned_elements != expected) {
      problems.push_back(fmt::format("tensor {} ({}): owners hold {} of {} elements", key.first,
                                     tensor_kind_name(key.second), entry.owned_elements, expected));
    }
    ids[key] = static_cast<int>(plan.tensors.size());
    plan.tensors.push_back(entry.info);
  }
  if (!problems.empty()) throw InternalError("checkpoint cannot be saved: {}", join(problems, "; "));
  for (const CheckpointTensor& tensor : tensors) {
    if (is_saved(tensor)) plan.mine.push_back({&tensor, ids[{tensor.name, tensor.kind}]});
  }
  return plan;
}

// Like problem_of, with the bytes wanted and left where the disk is full.
std::string save_problem(FileSystem& files, const std::string& checkpoints_dir, int64_t bytes,
                         const std::function<void()>& fn) {
  bool full = false;
  std::string problem = problem_of([&] {
    try {
      fn();
    } catch (const std::system_error& error) {
      full = error.code() == std::errc::no_space_on_device || error.code().value() == EDQUOT;
      throw;
    }
  });
  if (!full) return problem;
  const std::string unknown = problem_of([&] {
    problem += fmt::format(" (needs {} bytes, {} bytes are free)", bytes, files.free_bytes(checkpoints_dir));
  });
  return unknown.empty() ? problem : fmt::format("{} (needs {} bytes)", problem, bytes);
}

void check_space(FileSystem& files, const std::string& checkpoints_dir, int64_t bytes) {
  const int64_t free = files.free_bytes(checkpoints_dir);
  if (free < bytes) {
    throw CheckpointSaveError("{}: needs {} bytes, {} bytes are free", checkpoints_dir, bytes, free);
  }
}

// The directory being written, private until it is whole.
std::string make_temporary(FileSystem& files, const std::string& checkpoints_dir, int64_t step,
                           const std::string& uuid) {
  const std::string path = checkpoints_dir + "/" + aside_name(Aside::writing, step, uuid);
  files.create_directory(path, 0700);
  files.create_directory(path + "/shards", 0777);
  files.create_directory(path + "/run", 0777);
  files.sync_directory(checkpoints_dir);
  return path;
}

void remove_temporary(FileSystem& files, const std::string& path) {
  const std::string problem = problem_of([&] {
    if (files.exists(path)) remove_all(files, path);
  });
  if (!problem.empty()) log_warning("the unfinished checkpoint could not be removed: {}", problem);
}

FileRef write_text(FileSystem& files, const std::string& directory, const std::string& name,
                   const std::string& text) {
  write_new_file(files, directory + "/" + name, text);
  return {name, static_cast<int64_t>(text.size()), crc32c(text)};
}

// Rank 0, once every rank's files are durable: marks the directory as whole.
void write_manifest(FileSystem& files, const std::string& directory, Manifest manifest,
                    const CheckpointText& text) {
  for (const FileRef& file : manifest.files) {
    const std::string path = directory + "/" + file.path;
    const int64_t bytes = files.open(path)->size();
    if (bytes != file.bytes) {
      throw CheckpointSaveError(
          "{} has {} bytes for rank 0 and {} for its writer: all ranks must see one file system", path, bytes,
          file.bytes);
    }
  }
  manifest.files.push_back(write_text(files, directory, kConfigFile, text.config_textproto));
  manifest.files.push_back(write_text(files, directory, kTokenizerFile, text.tokenizer_json));
  manifest.files.push_back(write_text(files, directory, kBuildFile, text.build));
  files.sync_directory(directory + "/run");
  const std::string encoded = encode_manifest(manifest);
  decode_manifest(encoded, directory + "/" + kManifestFile);  // readers must not refuse what is written here
  const FileRef written = write_text(files, directory, kManifestFile, encoded);
  files.sync_directory(directory);
  write_new_file(files, directory + "/" + kCommitFile,
                 encode_commit({manifest.save_uuid, written.bytes, written.crc}));
  files.sync_directory(directory);
  files.set_default_mode(directory);
}

// The rename that makes it a checkpoint. A directory of the same step steps aside first: list_checkpoints
// takes it for the step as long as no other has the name.
void publish(FileSystem& files, const std::string& checkpoints_dir, const std::string& temporary,
             const Manifest& manifest) {
  const int64_t step = manifest.state.step;
  const std::string path = checkpoints_dir + "/" + step_name(step);
  const std::string replaced = aside_name(Aside::replaced, step, manifest.save_uuid);
  const bool replaces = files.exists(path);
  if (replaces) files.rename(path, checkpoints_dir + "/" + replaced);
  try {
    files.rename(temporary, path);
  } catch (const std::system_error&) {
    if (replaces) problem_of([&] { files.rename(checkpoints_dir + "/" + replaced, path); });
    throw;
  }
  try {
    files.sync_directory(checkpoints_dir);
  } catch (const std::system_error& error) {
    throw CheckpointSaveError("{}; {} is whole and in place, but a power failure may undo it", error.what(),
                              path);
  }
}

// After the commit: failures here cost nothing but a warning.
void tidy(FileSystem& files, const std::string& checkpoints_dir, const Manifest& manifest,
          const Retention& retention) {
  const int64_t step = manifest.state.step;
  const auto attempt = [](const char* what, const std::function<void()>& fn) {
    const std::string problem = problem_of(fn);
    if (!problem.empty()) log_warning("the checkpoint is saved, but {}: {}", what, problem);
  };
  attempt("the hint LATEST could not be written",
          [&] { write_file_atomically(files, checkpoints_dir + "/" + kLatestFile, step_name(step) + "\n"); });
  attempt("the one it replaces could not be deleted", [&] {
    const std::string replaced = aside_name(Aside::replaced, step, manifest.save_uuid);
    if (files.exists(checkpoints_dir + "/" + replaced)) discard(files, checkpoints_dir, replaced, step);
  });
  Retention kept = retention;
  kept.just_saved = checkpoints_dir + "/" + step_name(step);
  attempt("older ones could not be deleted", [&] { prune_checkpoints(files, checkpoints_dir, kept); });
}

std::vector<FileRef> written_files(Communicator& comm, const Written& mine,
                                   std::vector<std::string>& problems) {
  std::vector<FileRef> refs;
  const std::vector<std::string> messages = all_gather_bytes(comm, encode_written(mine));
  for (size_t r = 0; r < messages.size(); ++r) {
    const Written written = decode_written(messages[r]);
    if (!written.problem.empty()) problems.push_back(fmt::format("rank {}: {}", r, written.problem));
    refs.push_back(written.data);
    refs.push_back(written.table);
  }
  return refs;
}

[[noreturn]] void fail(int64_t step, const std::string& problem) {
  throw CheckpointSaveError("step {} was not saved, older checkpoints are untouched: {}", step, problem);
}

}  // namespace

std::string save_checkpoint(Communicator& comm, FileSystem& files, const std::string& checkpoints_dir,
                            const TrainState& state, const CheckpointText& text,
                            std::span<const CheckpointTensor> tensors, const Retention& retention) {
  const int64_t step = state.step;
  TRANSXSSM_CHECK(step >= 0 && step <= kMaxStep, "step {}", step);
  TRANSXSSM_CHECK(comm.size() <= kMaxShards, "{} ranks", comm.size());
  const SavePlan plan = agree_on_tensors(comm, tensors);

  const FromRankZero begun = run_on_rank_zero(comm, [&] {
    const std::string uuid = make_uuid();
    const std::string problem = save_problem(files, checkpoints_dir, plan.bytes, [&] {
      create_directories(files, checkpoints_dir);
      check_space(files, checkpoints_dir, plan.bytes + kSlackBytes);
      make_temporary(files, checkpoints_dir, step, uuid);
    });
    if (problem.empty()) return uuid;
    remove_temporary(files, checkpoints_dir + "/" + aside_name(Aside::writing, step, uuid));
    throw CheckpointSaveError("{}", problem);
  });
  if (!begun.problem.empty()) fail(step, "rank 0: " + begun.problem);
  const std::string& uuid = begun.value;
  const std::string temporary = checkpoints_dir + "/" + aside_name(Aside::writing, step, uuid);

  Written mine;
  const auto write = [&] {
    mine.problem = save_problem(files, checkpoints_dir, plan.bytes,
                                [&] { mine = write_shard(files, temporary, comm.rank(), plan.mine); });
  };
  comm.work("save", write);
  std::vector<std::string> problems;
  Manifest manifest{uuid, state, text.model_config, plan.tensors, written_files(comm, mine, problems)};
  if (manifest.state.wall_time_ns == 0) {
    manifest.state.wall_time_ns =
        std::chrono::nanoseconds(std::chrono::system_clock::now().time_since_epoch()).count();
  }

  if (problems.empty()) {
    const FromRankZero committed = run_on_rank_zero(comm, [&] {
      const std::string problem = save_problem(files, checkpoints_dir, plan.bytes, [&] {
        write_manifest(files, temporary, manifest, text);
        publish(files, checkpoints_dir, temporary, manifest);
      });
      if (!problem.empty()) throw CheckpointSaveError("{}", problem);
      return std::string();
    });
    if (!committed.problem.empty()) problems.push_back("rank 0: " + committed.problem);
  }
  const auto clean_up = [&] {
    if (problems.empty()) {
      tidy(files, checkpoints_dir, manifest, retention);
    } else {
      remove_temporary(files, temporary);
    }
  };
  // Nobody starts the next save, or reports a failure, before this one is cleaned up.
  comm.work("save", comm.rank() == 0 ? std::function<void()>(clean_up) : nullptr);
  if (!problems.empty()) fail(step, join(problems, "; "));
  return checkpoints_dir + "/" + step_name(step);
}

void check_writable(Communicator& comm, FileSystem& files, const std::string& checkpoints_dir,
                    int64_t bytes) {
  const FromRankZero checked = run_on_rank_zero(comm, [&] {
    create_directories(files, checkpoints_dir);
    const std::string probe = make_temporary(files, checkpoints_dir, 0, make_uuid());
    write_new_file(files, probe + "/run/probe", "probe\n");
    remove_all(files, probe);
    check_space(files, checkpoints_dir, bytes);
    return std::string();
  });
  if (!checked.problem.empty()) throw CheckpointSaveError("checkpoints cannot be saved: {}", checked.problem);
}

}  // namespace transxssm
