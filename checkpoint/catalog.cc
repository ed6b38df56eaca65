#include "checkpoint/catalog.h"

#include <algorithm>
#include <map>
#include <system_error>

#include "checkpoint/agreement.h"
#include "checkpoint/hugging_face.h"
#include "checkpoint/index.h"
#include "checkpoint/layout.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

CheckpointInfo examine(FileSystem& files, const std::string& path, int64_t step) {
  CheckpointInfo info{path, step, false, false, ""};
  info.reason = problem_of([&] {
    info.committed = files.exists(path + "/" + kCommitFile);
    if (!info.committed) throw CheckpointError("{}: has no {} mark", path, kCommitFile);
    make_index(read_raw(files, path), path);
  });
  info.valid = info.reason.empty();
  return info;
}

// The step of a checkpoint: that of its name or, where it has another, that of its manifest; -1: unknown.
int64_t step_of(FileSystem& files, const std::string& path) {
  int64_t step = parse_step_name(name_of(path)).value_or(-1);
  if (step < 0) problem_of([&] { step = make_index(read_raw(files, path), path).manifest.state.step; });
  return step;
}

bool holds_checkpoints(const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return parse_step_name(name) || parse_aside_name(Aside::replaced, name);
  });
}

NamedCheckpoints find(FileSystem& files, const std::string& path,
                      const CheckpointsOfRun& checkpoints_of_run) {
  if (path.empty() || !files.is_directory(path)) {
    throw CheckpointError("{}: {}", path,
                          !path.empty() && files.exists(path) ? "is neither a directory nor a link to one"
                                                              : "there is no such directory");
  }
  const auto has = [&](const char* name) { return files.exists(path + "/" + name); };
  if (has(kCommitFile) || has(kManifestFile)) {
    // A link, "." and the like stand for the directory that they lead to, with the steps beside that one.
    const std::string place = parse_step_name(name_of(path)) ? path : followed(path);
    return {directory_of(place), place};
  }
  const std::string configured = checkpoints_of_run ? checkpoints_of_run(path) : "";
  if (!configured.empty()) {
    if (files.is_directory(configured)) return {configured, ""};
    throw CheckpointError(
        "{}: its configuration keeps the checkpoints in {}, which is no directory: name the directory that "
        "holds them",
        path, configured);
  }
  const std::vector<std::string> names = files.list(path);
  if (holds_checkpoints(names)) return {path, ""};
  const std::string inside = path + "/checkpoints";
  if (files.is_directory(inside)) return {inside, ""};
  if (parse_step_name(name_of(path))) return {directory_of(path), path};  // what an interrupted copy left
  if (names.empty()) return {path, ""};
  throw CheckpointError(
      "{}: no checkpoint is there: it has neither the {} of a checkpoint, nor step-NNNNNNNNN directories, "
      "nor "
      "the directory checkpoints or the config.textproto of a run",
      path, kCommitFile);
}

// The newest of `place` that can be taken, or the one that it names; empty where there is none.
std::string select(FileSystem& files, const NamedCheckpoints& place, Fallback fallback) {
  const std::string& named = place.checkpoint;
  const auto take = [&](const CheckpointInfo& info) {
    if (fallback == Fallback::stop) {
      if (info.valid) return true;
      throw CheckpointError("{}; {}", info.reason, fallback_hint(files, info.path));
    }
    // The data's checksums too: this policy is asked for after one of them did not match.
    const std::vector<std::string> problems = verify_checkpoint(files, info.path);
    if (!problems.empty()) log_warning("ignored {}: {}", info.path, problems.front());
    return problems.empty();
  };
  int64_t end = kMaxStep + 1;
  if (!named.empty()) {
    end = step_of(files, named);
    if (take(examine(files, named, end))) return named;
  }
  for (const CheckpointInfo& info : list_checkpoints(files, place.directory)) {
    if (info.step >= end) continue;
    if (!info.committed) {
      log_warning("ignored {}", info.reason);
    } else if (take(info)) {
      return info.path;
    }
  }
  return "";
}

}  // namespace

CheckpointInfo examine_checkpoint(FileSystem& files, const std::string& path) {
  return examine(files, path, step_of(files, path));
}

NamedCheckpoints find_checkpoints(FileSystem& files, const std::string& path,
                                  const CheckpointsOfRun& checkpoints_of_run) {
  std::string named = path;
  while (named.size() > 1 && named.back() == '/') named.pop_back();
  try {
    return find(files, named, checkpoints_of_run);
  } catch (const std::system_error& error) {
    throw CheckpointError("{}: {}", path, error.what());
  }
}

std::vector<CheckpointInfo> list_checkpoints(FileSystem& files, const std::string& checkpoints_dir) {
  if (!files.is_directory(checkpoints_dir)) return {};
  std::map<int64_t, std::string, std::greater<>> names;
  const std::vector<std::string> all = files.list(checkpoints_dir);
  // A save that replaces a step stopped between its two renames: the old one still counts.
  for (const std::string& name : all) {
    if (const auto step = parse_aside_name(Aside::replaced, name)) names[*step] = name;
  }
  for (const std::string& name : all) {
    if (const auto step = parse_step_name(name)) names[*step] = name;
  }
  std::vector<CheckpointInfo> infos;
  for (const auto& [step, name] : names) infos.push_back(examine(files, checkpoints_dir + "/" + name, step));
  return infos;
}

std::vector<std::string> verify_checkpoint(FileSystem& files, const std::string& path) {
  std::vector<std::string> problems;
  std::optional<Index> index;
  const auto note = [&](const std::string& problem) {
    if (!problem.empty()) problems.push_back(problem);
    return problem.empty();
  };
  if (!note(problem_of([&] { index = make_index(read_raw(files, path), path); }))) return problems;
  std::vector<std::byte> buffer;
  for (int s = 0; s < index->manifest.num_shards(); ++s) {
    std::optional<DataFile> file;
    if (!note(problem_of([&] { file.emplace(files, *index, s); }))) continue;
    note(problem_of([&] { file->check_header(); }));
    for (const StoredBox& box : index->tables[static_cast<size_t>(s)].boxes) {
      for (int64_t c = 0; c < static_cast<int64_t>(box.chunk_crcs.size()); ++c) {
        note(problem_of([&] { file->chunk(box, c, buffer); }));
      }
    }
  }
  return problems;
}

std::optional<CheckpointInfo> whole_before(FileSystem& files, const std::string& checkpoints_dir,
                                           int64_t step) {
  for (const CheckpointInfo& info : list_checkpoints(files, checkpoints_dir)) {
    if (info.step < step && info.valid && verify_checkpoint(files, info.path).empty()) return info;
  }
  return std::nullopt;
}

std::string fallback_hint(FileSystem& files, const std::string& path) {
  std::optional<CheckpointInfo> older;
  const std::string problem = problem_of([&] {
    const int64_t step = step_of(files, path);
    if (step >= 0) older = whole_before(files, directory_of(path), step);
  });
  if (!problem.empty()) return "older checkpoints could not be read: " + problem;
  if (!older) return "there is no older checkpoint that is whole";
  return fmt::format(
      "the newest older checkpoint that is whole is step {}: --set checkpoint.fallback=previous uses it",
      older->step);
}

std::optional<std::string> newest_checkpoint(Communicator& comm, FileSystem& files,
                                             const std::string& checkpoints_dir, Fallback fallback) {
  const FromRankZero chosen = run_on_rank_zero(comm, [&] {
    return select(files, {checkpoints_dir, ""}, fallback);
  });
  if (!chosen.problem.empty()) throw CheckpointError("checkpoint refused: {}", chosen.problem);
  if (chosen.value.empty()) return std::nullopt;
  return chosen.value;
}

std::string named_checkpoint(Communicator& comm, FileSystem& files, const std::string& path,
                             const CheckpointsOfRun& checkpoints_of_run, Fallback fallback) {
  const FromRankZero chosen = run_on_rank_zero(comm, [&] {
    const NamedCheckpoints place = find_checkpoints(files, path, checkpoints_of_run);
    std::string found = select(files, place, fallback);
    if (found.empty()) throw CheckpointError("{}: there is no whole checkpoint in {}", path, place.directory);
    return found;
  });
  if (!chosen.problem.empty()) throw CheckpointError("checkpoint refused: {}", chosen.problem);
  return chosen.value;
}

void discard(FileSystem& files, const std::string& checkpoints_dir, const std::string& name, int64_t step) {
  std::string doomed = name;
  if (!parse_aside_name(Aside::deleted, name) && !parse_aside_name(Aside::writing, name)) {
    doomed = aside_name(Aside::deleted, step, make_uuid());
    files.rename(checkpoints_dir + "/" + name, checkpoints_dir + "/" + doomed);
    files.sync_directory(checkpoints_dir);
  }
  remove_all(files, checkpoints_dir + "/" + doomed);
}

std::vector<int64_t> prune_checkpoints(FileSystem& files, const std::string& checkpoints_dir,
                                       const Retention& retention) {
  std::vector<int64_t> removed;
  if (retention.keep_last <= 0) return removed;
  int kept = 0;
  for (const CheckpointInfo& info : list_checkpoints(files, checkpoints_dir)) {
    if (!info.valid) continue;  // neither counted nor deleted: somebody may want to look at it
    const bool milestone = retention.keep_every > 0 && info.step % retention.keep_every == 0;
    const auto is = [&](const std::string& path) {
      return !path.empty() && name_of(info.path) == name_of(path);
    };
    if (kept++ < retention.keep_last || milestone || is(retention.resumed_from) || is(retention.just_saved))
      continue;
    discard(files, checkpoints_dir, name_of(info.path), info.step);
    removed.push_back(info.step);
  }
  return removed;
}

std::vector<std::string> remove_leftovers(FileSystem& files, const std::string& checkpoints_dir) {
  std::vector<std::string> removed;
  if (!files.is_directory(checkpoints_dir)) return removed;
  for (const std::string& name : files.list(checkpoints_dir)) {
    auto step = parse_aside_name(Aside::writing, name);
    if (!step) step = parse_aside_name(Aside::deleted, name);
    if (const auto replaced = parse_aside_name(Aside::replaced, name)) {
      const std::string successor = checkpoints_dir + "/" + step_name(*replaced);
      if (files.exists(successor) && examine(files, successor, *replaced).valid) step = replaced;
    }
    if (!step) continue;
    discard(files, checkpoints_dir, name, *step);
    log_info("removed {}, which an interrupted save or deletion had left", name);
    removed.push_back(name);
  }
  return removed;
}

}  // namespace transxssm
