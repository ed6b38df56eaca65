// Checkpoints in format TXC1 (README.md of this folder): named global boxes, so that any mesh loads what any
// mesh saved. Functions that take a Communicator are collective: every rank calls them, and where one rank
// fails every rank throws, so nobody waits for a peer that gave up.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/file_system.h"
#include "runtime/tensor.h"

namespace transxssm {

class Stream;

enum class TensorKind : uint8_t { master, exp_avg, exp_avg_sq, buffer };

// "master", "exp_avg", ...
const char* tensor_kind_name(TensorKind kind);

// The box [offset, offset + extent) of one named tensor that this rank holds, in the space of the parameter.
struct CheckpointTensor {
  std::string name;  // printable ASCII without spaces, at most 512 bytes
  TensorKind kind = TensorKind::master;
  Shape global_shape;
  Shape offset;
  Shape extent;       // may contain 0: nothing of the tensor is here
  Tensor data;        // contiguous, of shape `extent`; empty where the extent is
  bool owner = true;  // exactly one rank owns an element: it saves it. Copies are loaded, never saved
  std::string
      tied_to;  // not empty: not stored; on load this box is read from the tensor of that name and kind
  Stream* stream = nullptr;  // of the device that `data` lies on; null: the CPU's
};

struct SavedMesh {
  int dp = 1, tp = 1, pp = 1, cp = 1;
  bool operator==(const SavedMesh&) const = default;
};

// The learning rate as a function of the tokens consumed, as it was settled at the first start.
struct SavedSchedule {
  std::string kind;  // a name of the program's; empty: not saved
  double peak = 0;
  double min_fraction = 0;
  int64_t warmup_tokens = 0;
  int64_t end_tokens = 0;
  int64_t unit = 1;
  bool operator==(const SavedSchedule&) const = default;
};

// What a run needs besides tensors to go on. The random numbers' state is the seed (runtime/rng.h), the
// data's is consumed_samples, the learning rate's is consumed_tokens.
struct TrainState {
  int64_t step = 0;     // finished steps, < 10^9
  int64_t updates = 0;  // of the weights
  int64_t consumed_samples = 0;
  int64_t consumed_tokens = 0;
  uint64_t seed = 0;
  double learning_rate = 0;  // of the last finished step
  double loss = 0;           // of the last finished step, for inspection
  SavedSchedule schedule;
  std::string data_digest;
  std::string tokenizer_digest;
  SavedMesh mesh;
  std::string run_uuid;
  int64_t wall_time_ns = 0;  // since 1970, when it was saved; set by save_checkpoint where zero
  bool operator==(const TrainState&) const = default;
};

struct CheckpointText {
  std::string model_config;      // opaque here; compared by the caller
  std::string config_textproto;  // the resolved configuration
  std::string tokenizer_json;
  std::string build;  // versions of the program that saved
  bool operator==(const CheckpointText&) const = default;
};

// What is kept once a save is committed. The newest `keep_last` valid checkpoints and every step that is a
// multiple of `keep_every` stay, and always the one the run was resumed from and the one just saved, which
// another run's later steps must not push out. 0: no limit / no such steps.
struct Retention {
  int keep_last = 0;
  int64_t keep_every = 0;
  std::string resumed_from = {};  // path; empty: none
  std::string just_saved = {};    // path; set by save_checkpoint
};

// A name for a run or a save: 32 hexadecimal digits from the system's random source.
std::string make_uuid();

// Saves one checkpoint under `checkpoints_dir` (made if missing) and returns its path, <dir>/step-<step>.
// Either the whole checkpoint is committed and durable, or no rank commits, what was written is removed and
// every rank throws CheckpointSaveError naming rank, path, the system's error and the bytes needed and free;
// older checkpoints are untouched. A checkpoint of the same step is replaced.
std::string save_checkpoint(Communicator& comm, FileSystem& files, const std::string& checkpoints_dir,
                            const TrainState& state, const CheckpointText& text,
                            std::span<const CheckpointTensor> tensors, const Retention& retention = {});

// Throws CheckpointSaveError where checkpoints_dir cannot be made or written to, or has less than `bytes`
// free: before step 1 instead of at the first save. Collective.
void check_writable(Communicator& comm, FileSystem& files, const std::string& checkpoints_dir, int64_t bytes);

struct TensorInfo {
  std::string name;
  TensorKind kind = TensorKind::master;
  Shape global_shape;
  DType dtype = DType::f32;
  std::string tied_to;
};

struct LoadedCheckpoint {
  std::string path;
  TrainState state;
  CheckpointText text;
  std::vector<TensorInfo> tensors;  // sorted by name, then kind
  int64_t bytes = 0;                // of all files
  int num_files = 0;
};

// Everything but the tensors' data, checked. Throws CheckpointError. With a communicator: rank 0 reads.
LoadedCheckpoint read_manifest(FileSystem& files, const std::string& path);
LoadedCheckpoint read_manifest(Communicator& comm, FileSystem& files, const std::string& path);

// Fills every target's box. Each byte read is checked against its CRC32C before it is used, and a target is
// written only once all its bytes passed. Throws CheckpointError on every rank, listing all tensors that are
// missing, extra, or of another shape or dtype, or naming file, tensor, byte range and checksums, and the
// newest older checkpoint that is whole. Kinds that no rank asks for (the moments, when only weights are
// wanted) are not read.
LoadedCheckpoint load_checkpoint(Communicator& comm, FileSystem& files, const std::string& path,
                                 std::span<const CheckpointTensor> targets);

struct CheckpointInfo {
  std::string path;
  int64_t step = 0;
  bool committed = false;  // has its COMMIT mark; without one it is what an interrupted copy left
  bool valid = false;      // committed, manifest and tables whole, every file there in its exact size
  std::string reason;      // why not valid
};

// All step directories, newest first. The data's checksums are not read: verify_checkpoint does.
std::vector<CheckpointInfo> list_checkpoints(FileSystem& files, const std::string& checkpoints_dir);

// Reads and checks everything. One entry a problem, naming file, tensor and byte range; none: the checkpoint
// is whole.
std::vector<std::string> verify_checkpoint(FileSystem& files, const std::string& path);

// One directory examined as list_checkpoints does.
CheckpointInfo examine_checkpoint(FileSystem& files, const std::string& path);

// Where a run directory says that its checkpoints are, as an existing or missing directory; empty: it says
// nothing. Configurations are not known here, launch/ reads them.
using CheckpointsOfRun = std::function<std::string(const std::string& run_directory)>;

// What a path stands for.
struct NamedCheckpoints {
  std::string directory;   // of step directories
  std::string checkpoint;  // the one that the path names; empty: it names them all
};

// Finds what a user names: one checkpoint, whatever its directory is called, a directory of checkpoints, a
// run directory, or a symbolic link to one of them. Throws CheckpointError that says what was looked for and
// where.
NamedCheckpoints find_checkpoints(FileSystem& files, const std::string& path,
                                  const CheckpointsOfRun& checkpoints_of_run = {});

enum class Fallback { stop, previous };

// The newest committed checkpoint of checkpoints_dir, the same on every rank; nothing where there is none.
// Uncommitted ones are skipped with a warning each. A committed one that fails a check throws CheckpointError
// naming the newest older whole one; with Fallback::previous that one is taken, with a warning.
std::optional<std::string> newest_checkpoint(Communicator& comm, FileSystem& files,
                                             const std::string& checkpoints_dir,
                                             Fallback fallback = Fallback::stop);

// The checkpoint that a user's path names (find_checkpoints), or the newest of those that it names, by the
// same rules; throws CheckpointError where there is none.
std::string named_checkpoint(Communicator& comm, FileSystem& files, const std::string& path,
                             const CheckpointsOfRun& checkpoints_of_run = {},
                             Fallback fallback = Fallback::stop);

// Removes what interrupted saves and deletions left (.tmp-*, .trash-*). Only for the holder of the run's lock
// (checkpoint/run_lock.h), on rank 0. Returns the names removed.
std::vector<std::string> remove_leftovers(FileSystem& files, const std::string& checkpoints_dir);

// Deletes what `retention` does not keep; returns the steps deleted. save_checkpoint calls it.
std::vector<int64_t> prune_checkpoints(FileSystem& files, const std::string& checkpoints_dir,
                                       const Retention& retention);

}  // namespace transxssm
