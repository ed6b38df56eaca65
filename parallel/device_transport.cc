#include "parallel/device_transport.h"

namespace transxssm {
namespace {

MakeDeviceTransport registered = nullptr;

// A tensor's place in host memory that devices copy without the host's help; grows, and is used again.
class PinnedBuffer {
 public:
  Tensor take(const Tensor& like, const Stream& stream) {
    if (arena_.bytes() < like.num_bytes()) {
      stream.synchronize();  // what is queued may still use the old one
      arena_ = {};
      arena_ = Arena(like.num_bytes(), stream.device(), MemoryKind::pinned);
    }
    return arena_.carver().take(like.dtype(), {like.num_elements()});
  }

 private:
  Arena arena_;
};

class StagedTransport final : public DeviceTransport {
 public:
  StagedTransport(Communicator& communicator, Stream& stream) : DeviceTransport(communicator, stream) {}

  std::string describe() const override { return "messages between hosts, staged through pinned memory"; }

  std::unique_ptr<DeviceTransport> make_group(Communicator& group) override {
    return staged_transport(group, stream_);
  }

  void all_reduce(const Tensor& x, ReduceOp op) override {
    const Tensor staged = download(x);
    communicator_.all_reduce(staged, op);
    transfer(stream_, staged, x);
  }

  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op) override {
    const Tensor from = download(input);
    const Tensor to = output_.take(output, stream_);
    communicator_.reduce_scatter(from, to, op);
    transfer(stream_, to, output);
  }

  void all_gather(const Tensor& input, const Tensor& output) override {
    const Tensor from = download(input);
    const Tensor to = output_.take(output, stream_);
    communicator_.all_gather(from, to);
    transfer(stream_, to, output);
  }

  void broadcast(const Tensor& x, int root) override {
    const Tensor staged = download(x);
    communicator_.broadcast(staged, root);
    if (communicator_.rank() != root) transfer(stream_, staged, x);
  }

  Transfer* start_send(const Tensor& tensor, int destination) override {
    Message* message = take();
    const Tensor staged = message->buffer.take(tensor, stream_);
    transfer(stream_, tensor, staged);
    stream_.synchronize();
    message->start(start_host_send(staged, destination), {}, {});
    return message;
  }

  Transfer* start_receive(const Tensor& tensor, int source) override {
    Message* message = take();
    const Tensor staged = message->buffer.take(tensor, stream_);
    message->start(start_host_receive(staged, source), staged, tensor);
    return message;
  }

 private:
  class Message final : public Transfer {
   public:
    explicit Message(StagedTransport& owner) : owner_(owner) {}

    void start(Transfer* host, const Tensor& staged, const Tensor& tensor) {
      host_ = host;
      staged_ = staged;
      tensor_ = tensor;
    }
    bool test() override {
      if (!host_->test()) return false;
      if (tensor_) {  // a receive
        transfer(owner_.stream_, staged_, tensor_);
        owner_.stream_.synchronize();  // the buffer is free for the next message
        tensor_ = {};
      }
      return true;
    }
    void release() override {
      host_->release();
      owner_.free_.push_back(this);
    }

    PinnedBuffer buffer;

   private:
    StagedTransport& owner_;
    Transfer* host_ = nullptr;
    Tensor staged_, tensor_;
  };

  Message* take() {
    if (free_.empty()) {
      owned_.push_back(std::make_unique<Message>(*this));
      free_.reserve(owned_.size());
      free_.push_back(owned_.back().get());
    }
    Message* message = free_.back();
    free_.pop_back();
    return message;
  }

  // Waits for the stream, so that afterwards nothing queued uses either buffer.
  Tensor download(const Tensor& tensor) {
    const Tensor staged = input_.take(tensor, stream_);
    transfer(stream_, tensor, staged);
    stream_.synchronize();
    return staged;
  }

  PinnedBuffer input_, output_;
  std::vector<std::unique_ptr<Message>> owned_;
  std::vector<Message*> free_;
};

}  // namespace

void DeviceTransport::begin_collective(const char* operation, int64_t bytes, int64_t detail, int64_t sent) {
  communicator_.count_sent(sent);
  communicator_.begin_collective(operation, bytes, detail);
}

Transfer* DeviceTransport::start_host_send(const Tensor& staged, int destination) {
  return communicator_.start_send(Communicator::Channel::point_to_point, staged.raw(), staged.num_bytes(),
                                  destination);
}

Transfer* DeviceTransport::start_host_receive(const Tensor& staged, int source) {
  return communicator_.start_receive(Communicator::Channel::point_to_point, staged.raw(), staged.num_bytes(),
                                     source);
}

std::unique_ptr<DeviceTransport> staged_transport(Communicator& communicator, Stream& stream) {
  return std::make_unique<StagedTransport>(communicator, stream);
}

void use_device_transport(MakeDeviceTransport make) {
  registered = make;
}

std::string attach_device(Communicator& world, Stream& stream) {
  if (stream.device().is_cpu()) return "";
  const Uncounted preparation(world);
  std::unique_ptr<DeviceTransport> transport;
  std::string reason = "this program has no other transport";
  if (registered != nullptr) transport = registered(world, stream, reason);
  const bool fallback = transport == nullptr;
  if (fallback) transport = staged_transport(world, stream);
  const std::string text = transport->describe() + (fallback ? ": " + reason : "");
  world.use_device(std::move(transport));
  return text;
}

}  // namespace transxssm
