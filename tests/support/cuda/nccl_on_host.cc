// What the project calls of NCCL, for ranks that are threads with emulated devices. A collective runs in the
// order of its stream and waits for its other ranks; a message is copied when it is sent. Calls come under
// way only when they are asked about, as those of NCCL that do not block.
#include <nccl.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/dtype.h"
#include "tests/support/cuda/nccl_on_host.h"
#include "tests/support/cuda/queue.h"

namespace {

using transxssm::BFloat16;
using Bytes = std::vector<std::byte>;

struct Round {
  std::vector<const void*> given;  // by rank
  int arrived = 0, computed = 0, left = 0;
};

struct Group {
  explicit Group(int num_ranks) : size(num_ranks) {}
  const int size;
  std::mutex mutex;
  std::condition_variable changed;
  bool broken = false;
  std::map<int64_t, Round> rounds;                            // by number of the collective
  std::map<std::pair<int, int>, std::deque<Bytes>> messages;  // by source and destination

  // False where the group broke before it came true. With the lock.
  template <class Condition>
  bool wait(std::unique_lock<std::mutex>& lock, Condition&& condition) {
    changed.wait(lock, [&] { return broken || condition(); });
    return !broken;
  }
  void end() {
    const std::lock_guard lock(mutex);
    broken = true;
    changed.notify_all();
  }
};

std::mutex groups_mutex;
std::map<std::string, std::weak_ptr<Group>> groups;  // by unique id
int next_id = 0;

int64_t bytes_of(ncclDataType_t type) {
  return type == ncclFloat64 ? 8 : type == ncclFloat32 ? 4 : type == ncclBfloat16 ? 2 : 1;
}

template <class T>
void add(const std::vector<const void*>& given, int64_t begin, int64_t count, void* out) {
  for (int64_t i = 0; i < count; ++i) {
    T sum = static_cast<const T*>(given.back())[begin + i];  // not in the order of the ranks
    for (size_t r = given.size() - 1; r-- > 0;) sum += static_cast<const T*>(given[r])[begin + i];
    static_cast<T*>(out)[i] = sum;
  }
}

template <>
void add<BFloat16>(const std::vector<const void*>& given, int64_t begin, int64_t count, void* out) {
  for (int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (const void* one : given) sum += transxssm::to_float(static_cast<const BFloat16*>(one)[begin + i]);
    static_cast<BFloat16*>(out)[i] = transxssm::to_bfloat16(sum);
  }
}

void add(ncclDataType_t type, const std::vector<const void*>& given, int64_t begin, int64_t count,
         void* out) {
  if (type == ncclFloat64) return add<double>(given, begin, count, out);
  if (type == ncclFloat32) return add<float>(given, begin, count, out);
  add<BFloat16>(given, begin, count, out);
}

}  // namespace

struct ncclComm {
  std::shared_ptr<Group> group;
  int rank = 0;
  int64_t collectives = 0;
  bool pending = false;  // a call was started and not asked about
};

namespace {

ncclResult_t started(ncclComm_t comm) {
  comm->pending = true;
  return ncclInProgress;
}

// `compute` makes this rank's result of what all gave; it is written when all have read.
ncclResult_t collective(ncclComm_t comm, cudaStream_t stream, const void* in, void* out,
                        std::function<Bytes(const std::vector<const void*>&)> compute) {
  transxssm::cuda::emulated::enqueue(
      stream, [group = comm->group, rank = comm->rank, number = comm->collectives++, in, out, compute] {
        std::unique_lock lock(group->mutex);
        Round& round = group->rounds[number];
        round.given.resize(static_cast<size_t>(group->size));
        round.given[static_cast<size_t>(rank)] = in;
        ++round.arrived;
        group->changed.notify_all();
        if (!group->wait(lock, [&] { return round.arrived == group->size; })) return;
        lock.unlock();
        const Bytes result = compute(round.given);
        lock.lock();
        ++round.computed;
        group->changed.notify_all();
        if (!group->wait(lock, [&] { return round.computed == group->size; })) return;
        std::memcpy(out, result.data(), result.size());
        if (++round.left == group->size) group->rounds.erase(number);
      });
  return started(comm);
}

}  // namespace

namespace transxssm::cuda::emulated {

void break_nccl() {
  const std::lock_guard lock(groups_mutex);
  for (const auto& [id, group] : groups)
    if (const auto alive = group.lock()) alive->end();
}

}  // namespace transxssm::cuda::emulated

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(groups_mutex);
  const std::string text = "group " + std::to_string(next_id++);
  *id = {};
  text.copy(id->internal, sizeof id->internal - 1);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;
  const std::lock_guard lock(groups_mutex);
  std::weak_ptr<Group>& known = groups[id.internal];
  std::shared_ptr<Group> group = known.lock();
  if (group == nullptr) known = group = std::make_shared<Group>(size);
  *comm = new ncclComm{group, rank};
  return started(*comm);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard lock(comm->group->mutex);
  *state = comm->group->broken ? ncclRemoteError : comm->pending ? ncclInProgress : ncclSuccess;
  comm->pending = false;
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  return started(comm);
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->group->end();
  delete comm;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error" : "another error";
}
const char* ncclGetLastError(ncclComm_t) {
  return "";
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t stream) {
  const auto n = static_cast<int64_t>(count);
  return collective(comm, stream, in, out, [=](const auto& given) {
    Bytes result(static_cast<size_t>(n * bytes_of(type)));
    add(type, given, 0, n, result.data());
    return result;
  });
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t,
                               ncclComm_t comm, cudaStream_t stream) {
  const auto n = static_cast<int64_t>(count);
  return collective(comm, stream, in, out, [=, rank = comm->rank](const auto& given) {
    Bytes result(static_cast<size_t>(n * bytes_of(type)));
    add(type, given, rank * n, n, result.data());
    return result;
  });
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  const auto bytes = static_cast<int64_t>(count) * bytes_of(type);
  return collective(comm, stream, in, out, [=](const auto& given) {
    Bytes result;
    for (const void* one : given) {
      const auto* begin = static_cast<const std::byte*>(one);
      result.insert(result.end(), begin, begin + bytes);
    }
    return result;
  });
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const auto bytes = static_cast<int64_t>(count) * bytes_of(type);
  return collective(comm, stream, in, out, [=](const auto& given) {
    const auto* begin = static_cast<const std::byte*>(given[static_cast<size_t>(root)]);
    return Bytes(begin, begin + bytes);
  });
}
ncclResult_t ncclSend(const void* in, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  const auto bytes = static_cast<int64_t>(count) * bytes_of(type);
  transxssm::cuda::emulated::enqueue(stream, [=, group = comm->group, rank = comm->rank] {
    const auto* begin = static_cast<const std::byte*>(in);
    const std::lock_guard lock(group->mutex);
    group->messages[{rank, peer}].emplace_back(begin, begin + bytes);
    group->changed.notify_all();
  });
  return started(comm);
}
ncclResult_t ncclRecv(void* out, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(static_cast<int64_t>(count) * bytes_of(type));
  transxssm::cuda::emulated::enqueue(stream, [=, group = comm->group, rank = comm->rank] {
    std::unique_lock lock(group->mutex);
    std::deque<Bytes>& mail = group->messages[{peer, rank}];
    if (!group->wait(lock, [&] { return !mail.empty(); })) return;
    if (mail.front().size() == bytes) {
      std::memcpy(out, mail.front().data(), bytes);
    } else {
      group->broken = true;
      group->changed.notify_all();
    }
    mail.pop_front();
  });
  return started(comm);
}
