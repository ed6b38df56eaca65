// How tensors in a device's memory move between the ranks of a communicator, whose tensors in host memory go
// on as before. A call is ordered on the rank's stream: it begins after what was queued before, and what is
// queued later finds its result; the host need not wait. All ranks pass tensors of the same kind of memory.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "runtime/stream.h"

namespace transxssm {

// While it lives, what a communicator does counts as nobody's traffic: for what only prepares.
class Uncounted {
 public:
  explicit Uncounted(Communicator& communicator)
      : communicator_(communicator),
        traffic_(communicator.traffic_),
        number_(communicator.num_collectives_) {}
  ~Uncounted() {
    communicator_.traffic_ = traffic_;
    communicator_.num_collectives_ = number_;
  }
  Uncounted(const Uncounted&) = delete;

 private:
  Communicator& communicator_;
  const Traffic traffic_;
  const int64_t number_;
};

class DeviceTransport {
 public:
  virtual ~DeviceTransport() = default;
  DeviceTransport(const DeviceTransport&) = delete;
  DeviceTransport& operator=(const DeviceTransport&) = delete;

  // For messages: "NCCL 2.28.9".
  virtual std::string describe() const = 0;
  // The transport of a group that was split from this communicator. Collective over the group.
  virtual std::unique_ptr<DeviceTransport> make_group(Communicator& group) = 0;

  // As the methods of Communicator, which checks their arguments. Tensors are not empty; all_reduce,
  // start_all_reduce and broadcast are called on groups of more than one rank only.
  virtual void all_reduce(const Tensor& x, ReduceOp op) = 0;
  // A sum under way beside the stream, which joins it; null where it is formed at once.
  virtual Transfer* start_all_reduce(const Tensor& x) {
    all_reduce(x, ReduceOp::sum);
    return nullptr;
  }
  virtual void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op) = 0;
  virtual void all_gather(const Tensor& input, const Tensor& output) = 0;
  virtual void broadcast(const Tensor& x, int root) = 0;
  virtual Transfer* start_send(const Tensor& tensor, int destination) = 0;
  virtual Transfer* start_receive(const Tensor& tensor, int source) = 0;

  // Throws CommunicationError where an operation that was queued has failed or hangs.
  virtual void check() {}

 protected:
  // Both must outlive every call; the destructor uses neither.
  DeviceTransport(Communicator& communicator, Stream& stream)
      : communicator_(communicator), stream_(stream) {}

  // For transports that do not go through the communicator's own collectives: counts one that sends `sent`
  // bytes, and compares it with the other ranks' where that is asked for.
  void begin_collective(const char* operation, int64_t bytes, int64_t detail, int64_t sent);
  // Messages between hosts, on the channel of sends and receives.
  Transfer* start_host_send(const Tensor& staged, int destination);
  Transfer* start_host_receive(const Tensor& staged, int source);

  Communicator& communicator_;
  Stream& stream_;
};

// Device tensors staged through pinned memory and sent between hosts: works on every device and for any
// number of ranks on one, and gives the host's bits. The host waits in every call.
std::unique_ptr<DeviceTransport> staged_transport(Communicator& communicator, Stream& stream);

// A backend's transport for the ranks of `world`, or null where it cannot serve them, with the reason.
// Collective: every rank gets one, or none does.
using MakeDeviceTransport = std::unique_ptr<DeviceTransport> (*)(Communicator& world, Stream& stream,
                                                                 std::string& reason);
// The backend registers itself once, at the program's start. Null takes it back.
void use_device_transport(MakeDeviceTransport make);

// Collective over `world`: from now on it, and what is split from it, takes tensors on the device of `stream`
// too: by the registered backend where that can, else staged. Returns which, and why, for the log; on the CPU
// there is nothing to do, and it returns "". `stream` must outlive every use of such tensors.
std::string attach_device(Communicator& world, Stream& stream);

}  // namespace transxssm
