// Loading: rank 0 reads the index, every rank plans its own boxes and reads only what they need.
#include <cstring>
#include <map>

#include "checkpoint/agreement.h"
#include "checkpoint/catalog.h"
#include "checkpoint/index.h"
#include "checkpoint/plan.h"
#include "runtime/stream.h"

namespace transxssm {
namespace {

constexpr size_t kMaxOpenFiles = 64;
constexpr size_t kNumKinds = 4;

std::string describe(const std::string& name, TensorKind kind) {
  return fmt::format("{} ({})", name, tensor_kind_name(kind));
}

Index read_index(Communicator& comm, FileSystem& files, const std::string& path) {
  const FromRankZero raw = run_on_rank_zero(comm, [&] {
    const RawCheckpoint read = read_raw(files, path);
    make_index(read, path);  // what it refuses is found here once, before it is sent around
    return encode_raw(read);
  });
  if (raw.problem.empty()) return make_index(decode_raw(raw.value), path);
  const FromRankZero hint = run_on_rank_zero(comm, [&] { return fallback_hint(files, path); });
  throw CheckpointError("checkpoint refused: {}; {}", raw.problem, hint.value);
}

// Why the target cannot be filled from this checkpoint; empty where it can.
std::string mismatch(const Index& index, const CheckpointTensor& target) {
  const std::string what = describe(target.name, target.kind);
  const Shape& extent = target.extent;
  const auto volume = checked_volume(extent);
  if (!volume || !is_inside({target.offset, extent}, target.global_shape)) {
    return fmt::format("{}: this rank asks for a box that is not inside of the tensor", what);
  }
  if (*volume > 0 && (target.data.shape() != extent || !target.data.is_contiguous())) {
    return fmt::format("{}: this rank's memory has another shape than its box {}", what, extent.to_string());
  }
  const int found = index.find(target.name, target.kind);
  if (found < 0) return fmt::format("{} is missing in the checkpoint", what);
  const TensorInfo& info = index.manifest.tensors[static_cast<size_t>(found)];
  std::vector<std::string> differences;
  if (info.global_shape != target.global_shape) {
    differences.push_back(fmt::format("shape {} in the checkpoint, {} in the model",
                                      info.global_shape.to_string(), target.global_shape.to_string()));
  }
  if (*volume > 0 && info.dtype != target.data.dtype()) {
    differences.push_back(fmt::format("{} in the checkpoint, {} in the model", dtype_name(info.dtype),
                                      dtype_name(target.data.dtype())));
  }
  if (info.tied_to != target.tied_to) {
    const auto tie = [](const std::string& name) { return name.empty() ? "not tied" : "tied to " + name; };
    differences.push_back(
        fmt::format("{} in the checkpoint, {} in the model", tie(info.tied_to), tie(target.tied_to)));
  }
  return differences.empty() ? "" : what + ": " + join(differences, "; ");
}

// Tensors of the kinds that were asked for which no rank asked for.
std::vector<std::string> extra_tensors(Communicator& comm, const Index& index,
                                       std::span<const CheckpointTensor> targets) {
  const size_t count = index.manifest.tensors.size();
  std::vector<float> asked(count + kNumKinds, 0.0f);
  for (const CheckpointTensor& target : targets) {
    const int found = index.find(target.name, target.kind);
    if (found >= 0) asked[static_cast<size_t>(found)] = 1.0f;
    asked[count + static_cast<size_t>(target.kind)] = 1.0f;
  }
  comm.all_reduce(Tensor(asked.data(), DType::f32, {static_cast<int64_t>(asked.size())}), ReduceOp::max);
  std::vector<std::string> extra;
  for (size_t t = 0; t < count; ++t) {
    const TensorInfo& info = index.manifest.tensors[t];
    if (asked[t] == 0.0f && asked[count + static_cast<size_t>(info.kind)] != 0.0f) {
      extra.push_back(describe(info.name, info.kind) + " is in the checkpoint, but not in the model");
    }
  }
  return extra;
}

void check_targets(Communicator& comm, const Index& index, std::span<const CheckpointTensor> targets) {
  std::vector<std::string> local;
  for (const CheckpointTensor& target : targets) {
    std::string text = mismatch(index, target);
    if (!text.empty()) local.push_back(std::move(text));
  }
  std::vector<std::string> lines = gather_problems(comm, join(local, "\n  "));
  const std::vector<std::string> extra = extra_tensors(comm, index, targets);
  lines.insert(lines.end(), extra.begin(), extra.end());
  if (lines.empty()) return;
  throw CheckpointError("checkpoint {} does not fit this model; nothing was loaded:\n  {}", index.path,
                        join(lines, "\n  "));
}

// Reads this rank's boxes through one buffer of a chunk and one of a target.
class BoxReader {
 public:
  BoxReader(FileSystem& files, const Index& index) : files_(files), index_(index) {}

  void read(const CheckpointTensor& target) {
    const std::string& stored = target.tied_to.empty() ? target.name : target.tied_to;
    const auto tensor = static_cast<size_t>(index_.find(stored, target.kind));
    const std::vector<Index::Source>& sources = index_.sources[tensor];
    std::vector<Box> boxes;
    for (const Index::Source& source : sources) boxes.push_back(index_.stored(source).box);
    stage(target);
    for (const BoxCopy& copy : plan_copies({target.offset, target.extent}, boxes)) {
      copy_runs(sources[copy.source], copy.runs, dtype_bytes(target.data.dtype()));
    }
    // All of it passed: only now the model's memory is touched.
    if (device_of(target).is_cpu()) {
      std::memcpy(target.data.raw(), staged_, static_cast<size_t>(target.data.num_bytes()));
    } else {
      transfer(*target.stream, Tensor(staged_, target.data.dtype(), target.data.shape()), target.data);
      target.stream->synchronize();  // the next target takes the same memory
    }
  }

 private:
  static Device device_of(const CheckpointTensor& target) {
    return target.stream == nullptr ? Device{} : target.stream->device();
  }

  // Memory for all bytes of a target: pinned, where they go to a device.
  void stage(const CheckpointTensor& target) {
    const Device device = device_of(target);
    if (arena_.bytes() < target.data.num_bytes() || device != device_) {
      arena_ = {};
      arena_ = Arena(target.data.num_bytes(), device, MemoryKind::pinned);
      device_ = device;
    }
    staged_ = static_cast<std::byte*>(arena_.carver().take(DType::u8, {arena_.bytes()}).raw());
  }

  const DataFile& open(int shard) {
    const auto found = open_.find(shard);
    if (found != open_.end()) return found->second;
    if (open_.size() == kMaxOpenFiles) open_.clear();
    return open_.emplace(shard, DataFile(files_, index_, shard)).first->second;
  }

  void copy_runs(Index::Source source, const std::vector<CopyRun>& runs, int64_t element_bytes) {
    const DataFile& file = open(source.shard);
    const StoredBox& box = index_.stored(source);
    const int64_t chunk_bytes = index_.tables[static_cast<size_t>(source.shard)].chunk_bytes;
    std::span<const std::byte> chunk;
    int64_t current = -1;
    for (const CopyRun& run : runs) {
      int64_t from = run.source * element_bytes;
      int64_t to = run.target * element_bytes;
      for (int64_t left = run.count * element_bytes; left > 0;) {
        if (from / chunk_bytes != current) {
          current = from / chunk_bytes;
          chunk = file.chunk(box, current, buffer_);
        }
        const int64_t inside = from - current * chunk_bytes;
        const int64_t count = std::min(left, static_cast<int64_t>(chunk.size()) - inside);
        std::memcpy(staged_ + to, chunk.data() + inside, static_cast<size_t>(count));
        from += count;
        to += count;
        left -= count;
      }
    }
  }

  FileSystem& files_;
  const Index& index_;
  std::map<int, DataFile> open_;
  std::vector<std::byte> buffer_;
  Arena arena_;
  Device device_;
  std::byte* staged_ = nullptr;
};

}  // namespace

LoadedCheckpoint read_manifest(FileSystem& files, const std::string& path) {
  try {
    return summary(make_index(read_raw(files, path), path));
  } catch (const CheckpointError& error) {
    throw CheckpointError("checkpoint refused: {}; {}", error.what(), fallback_hint(files, path));
  }
}

LoadedCheckpoint read_manifest(Communicator& comm, FileSystem& files, const std::string& path) {
  return summary(read_index(comm, files, path));
}

LoadedCheckpoint load_checkpoint(Communicator& comm, FileSystem& files, const std::string& path,
                                 std::span<const CheckpointTensor> targets) {
  const Index index = read_index(comm, files, path);
  check_targets(comm, index, targets);
  std::string problem;
  const auto read = [&] {
    for (int s = comm.rank(); s < index.manifest.num_shards(); s += comm.size()) {
      DataFile(files, index, s).check_header();
    }
    BoxReader reader(files, index);
    for (const CheckpointTensor& target : targets) {
      if (target.data.num_elements() > 0) reader.read(target);
    }
  };
  comm.work("load", [&] { problem = problem_of(read); });
  const std::vector<std::string> problems = gather_problems(comm, problem);
  if (problems.empty()) return summary(index);
  const FromRankZero hint = run_on_rank_zero(comm, [&] { return fallback_hint(files, path); });
  throw CheckpointError("checkpoint refused: {}; {}", join(problems, "; "), hint.value);
}

}  // namespace transxssm
