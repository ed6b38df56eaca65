// Device tensors by NCCL: a group and a queue for each communicator, so that the messages of one do not wait
// for those of another, nor for computation that does not need them.
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "parallel/cuda/nccl_group.h"
#include "parallel/cuda/register.h"
#include "parallel/device_transport.h"
#include "runtime/error.h"

namespace transxssm::cuda {
namespace {

constexpr std::chrono::seconds kFirstMeeting(60);  // then the ranks go on without NCCL

ncclDataType_t summed_type(const Tensor& tensor, const char* operation) {
  switch (tensor.dtype()) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::bf16:
      return ncclBfloat16;
    default:
      throw InternalError("{} of {}", operation, dtype_name(tensor.dtype()));
  }
}

size_t count_of(const Tensor& tensor) {
  return static_cast<size_t>(tensor.num_elements());
}

size_t bytes_of(const Tensor& tensor) {
  return static_cast<size_t>(tensor.num_bytes());
}

class NcclTransport final : public DeviceTransport {
 public:
  // Collective over the communicator.
  NcclTransport(Communicator& communicator, Stream& stream, std::shared_ptr<NcclWatchdog> watchdog,
                std::string note, std::chrono::nanoseconds limit)
      : DeviceTransport(communicator, stream),
        watchdog_(std::move(watchdog)),
        note_(std::move(note)),
        staged_(staged_transport(communicator, stream)),
        queue_(device_runtime().make_queue(stream.device().index)) {
    if (communicator.size() == 1) return;
    ncclUniqueId id{};
    ncclResult_t status = ncclSuccess;
    if (communicator.rank() == 0) status = ncclGetUniqueId(&id);
    {
      const Uncounted preparation(communicator);
      communicator.broadcast(Tensor(&id, DType::u8, {int64_t{sizeof id}}), 0);
    }
    if (status != ncclSuccess)  // the others find that nobody meets them
      throw CommunicationError("NCCL cannot start: {}", ncclGetLastError(nullptr));
    group_ = std::make_unique<NcclGroup>(watchdog_, id, communicator.rank(), communicator.size(), limit);
  }

  std::string describe() const override {
    int version = 0;
    ncclGetVersion(&version);
    return fmt::format("NCCL {}.{}.{}{}", version / 10000, version / 100 % 100, version % 100, note_);
  }

  std::unique_ptr<DeviceTransport> make_group(Communicator& group) override {
    return std::make_unique<NcclTransport>(group, stream_, watchdog_, note_, group.timeout());
  }

  // NCCL's maximum forgets NaNs; maxima are rare and small, so they take the way that keeps them.
  void all_reduce(const Tensor& x, ReduceOp op) override {
    if (op == ReduceOp::max) return staged_->all_reduce(x, op);
    queue_sum(x);
    stream_.queue()->wait_for(*queue_);
  }

  Transfer* start_all_reduce(const Tensor& x) override {
    queue_sum(x);
    return take();
  }

  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op) override {
    if (group_ == nullptr) return keep(input, output);
    if (op == ReduceOp::max) return staged_->reduce_scatter(input, output, op);
    const ncclDataType_t type = summed_type(input, "reduce_scatter");
    begin_collective("reduce_scatter", input.num_bytes(), 0, input.num_bytes() - output.num_bytes());
    collect("reduce_scatter", [&](ncclComm_t comm, cudaStream_t queue) {
      return ncclReduceScatter(input.raw(), output.raw(), count_of(output), type, ncclSum, comm, queue);
    });
  }

  void all_gather(const Tensor& input, const Tensor& output) override {
    if (group_ == nullptr) return keep(input, output);
    begin_collective("all_gather", input.num_bytes(), 0, output.num_bytes() - input.num_bytes());
    collect("all_gather", [&](ncclComm_t comm, cudaStream_t queue) {
      return ncclAllGather(input.raw(), output.raw(), bytes_of(input), ncclUint8, comm, queue);
    });
  }

  void broadcast(const Tensor& x, int root) override {
    const bool sends = communicator_.rank() == root;
    begin_collective("broadcast", x.num_bytes(), root,
                     sends ? (communicator_.size() - 1) * x.num_bytes() : 0);
    collect("broadcast", [&](ncclComm_t comm, cudaStream_t queue) {
      return ncclBroadcast(x.raw(), x.raw(), bytes_of(x), ncclUint8, root, comm, queue);
    });
  }

  Transfer* start_send(const Tensor& tensor, int destination) override {
    queue_up("send", [&](ncclComm_t comm, cudaStream_t queue) {
      return ncclSend(tensor.raw(), bytes_of(tensor), ncclUint8, destination, comm, queue);
    });
    return take();
  }

  Transfer* start_receive(const Tensor& tensor, int source) override {
    queue_up("receive", [&](ncclComm_t comm, cudaStream_t queue) {
      return ncclRecv(tensor.raw(), bytes_of(tensor), ncclUint8, source, comm, queue);
    });
    return take();
  }

  void check() override { watchdog_->check(); }

 private:
  // A message or a sum on its way: the stream waits for it, the host never does.
  class Message final : public Transfer {
   public:
    explicit Message(NcclTransport& owner) : owner_(owner) {}
    void start() {
      done_.record(owner_.native(*owner_.queue_));
      joined_ = false;
    }
    bool test() override {
      owner_.check();
      joined_ = joined_ || done_.reached();
      return joined_;
    }
    bool join() override {
      owner_.check();
      if (!joined_) done_.block(owner_.native(*owner_.stream_.queue()));
      return joined_ = true;
    }
    // NCCL cannot take a message back: the memory is the stream's again when it is done.
    void release() override {
      if (!joined_) done_.block(owner_.native(*owner_.stream_.queue()));
      owner_.free_.push_back(this);
    }

   private:
    NcclTransport& owner_;
    EventHandle done_;
    bool joined_ = false;
  };

  static cudaStream_t native(const DeviceQueue& queue) { return static_cast<cudaStream_t>(queue.native()); }

  // After what the stream was given before.
  template <class Start>
  void queue_up(const char* operation, Start&& start) {
    queue_->wait_for(*stream_.queue());
    cudaStream_t queue = native(*queue_);
    group_->run(fmt::format("Rank {} in {} of '{}'", communicator_.world_rank(communicator_.rank()),
                            operation, communicator_.name()),
                communicator_.timeout(), queue, [&](ncclComm_t comm) { return start(comm, queue); });
  }

  template <class Start>
  void collect(const char* operation, Start&& start) {
    queue_up(operation, start);
    stream_.queue()->wait_for(*queue_);
  }

  void queue_sum(const Tensor& x) {
    const ncclDataType_t type = summed_type(x, "all_reduce");
    const int64_t n = communicator_.size(), r = communicator_.rank(), count = x.num_elements();
    const int64_t own = (count * (r + 1) / n - count * r / n) * dtype_bytes(x.dtype());
    begin_collective("all_reduce", x.num_bytes(), 0, x.num_bytes() - own + (n - 1) * own);
    queue_up("all_reduce", [&](ncclComm_t comm, cudaStream_t queue) {
      return ncclAllReduce(x.raw(), x.raw(), count_of(x), type, ncclSum, comm, queue);
    });
  }

  // A group of one.
  void keep(const Tensor& input, const Tensor& output) {
    if (input.raw() != output.raw()) transfer(stream_, input, output);
  }

  Transfer* take() {
    if (free_.empty()) {
      owned_.push_back(std::make_unique<Message>(*this));
      free_.reserve(owned_.size());
      free_.push_back(owned_.back().get());
    }
    Message* message = free_.back();
    free_.pop_back();
    message->start();
    return message;
  }

  std::shared_ptr<NcclWatchdog> watchdog_;
  std::string note_;
  std::unique_ptr<DeviceTransport> staged_;
  std::unique_ptr<DeviceQueue> queue_;
  std::unique_ptr<NcclGroup> group_;  // null: one rank
  std::vector<std::unique_ptr<Message>> owned_;
  std::vector<Message*> free_;
};

// Where a rank computes.
struct Place {
  std::array<char, 64> host{};
  std::array<char, 16> gpu{};
  int64_t process = 0;
};

std::vector<Place> gather_places(Communicator& world, int device) {
  Place mine;
  gethostname(mine.host.data(), mine.host.size() - 1);
  device_properties(device).uuid.copy(mine.gpu.data(), mine.gpu.size());
  mine.process = getpid();
  std::vector<Place> all(static_cast<size_t>(world.size()));
  const int64_t bytes = sizeof(Place);
  world.all_gather(Tensor(&mine, DType::u8, {bytes}), Tensor(all.data(), DType::u8, {world.size() * bytes}));
  return all;
}

std::unique_ptr<DeviceTransport> make_nccl_transport(Communicator& world, Stream& stream,
                                                     std::string& reason) {
  const std::vector<Place> places = gather_places(world, stream.device().index);
  bool shared = false;
  for (size_t a = 0; a < places.size(); ++a) {
    for (size_t b = 0; b < a; ++b) {
      if (places[a].host != places[b].host || places[a].gpu != places[b].gpu) continue;
      shared = true;
      if (places[a].process != places[b].process) continue;
      reason = fmt::format("ranks {} and {} are threads on one GPU, which NCCL does not serve", b, a);
      return nullptr;
    }
  }
  std::string note;
  if (shared) {
    // NCCL refuses two ranks of one host on one GPU; ranks it takes for hosts of their own talk by sockets.
    const std::string name = fmt::format("{}-{}", places[0].host.data(), world.rank());
    setenv("NCCL_HOSTID", name.c_str(), 0);
    note = ", ranks that share a GPU as hosts of their own (NCCL_HOSTID): slow, for tests";
  }
  std::unique_ptr<DeviceTransport> transport;
  std::string fault;
  try {
    transport = std::make_unique<NcclTransport>(
        world, stream, std::make_shared<NcclWatchdog>(stream.device().index), note, kFirstMeeting);
  } catch (const CommunicationError& error) {
    fault = error.what();
  }
  double failed = fault.empty() ? 0 : 1;
  world.all_reduce(Tensor(&failed, DType::f64, {1}));
  if (failed == 0) return transport;
  reason = fault.empty() ? "NCCL fails on another rank" : fault;
  return nullptr;
}

}  // namespace
}  // namespace transxssm::cuda

namespace transxssm {

void register_nccl() {
  use_device_transport(cuda::make_nccl_transport);
}

}  // namespace transxssm
