#include "parallel/mpi_communicator.h"

#define OMPI_SKIP_MPICXX 1  // the C interface only
#include <mpi.h>

#include <algorithm>
#include <optional>

#include "parallel/shared_message.h"

namespace transxssm {
namespace {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw CommunicationError("{} failed: {}", call, text);
}

[[noreturn]] void throw_sizes_differ(int64_t sent, int64_t received) {
  throw CommunicationError(
      "a message of {} bytes met a receive of {} bytes: the ranks run different programs", sent, received);
}

void give_up(MPI_Request& request, bool is_receive) {
  if (request == MPI_REQUEST_NULL) return;
  if (is_receive) MPI_Cancel(&request);
  MPI_Request_free(&request);
}

// Transfers of one kind, made once and used again.
template <class T>
class TransferPool {
 public:
  T* take() {
    if (free_.empty()) {
      owned_.push_back(std::make_unique<T>(free_));
      free_.reserve(owned_.size());
      free_.push_back(owned_.back().get());
    }
    T* transfer = free_.back();
    free_.pop_back();
    return transfer;
  }

 private:
  std::vector<std::unique_ptr<T>> owned_;
  std::vector<T*> free_;
};

constexpr int64_t kSharedBytes =
    4096;  // from here on a message goes through shared memory, where there is any

// One message, in parts of at most the communicator's limit.
class MpiTransfer final : public Transfer {
 public:
  explicit MpiTransfer(std::vector<MpiTransfer*>& free) : free_(free) {}

  template <class Start>
  void start(std::byte* data, int64_t bytes, int64_t max_part, bool is_receive, Start&& start_part) {
    is_receive_ = is_receive;
    bytes_ = bytes;
    received_ = 0;
    done_ = 0;
    requests_.clear();
    int64_t begin = 0;
    do {  // an empty message is one empty part
      const int64_t part = std::min(bytes - begin, max_part);
      requests_.push_back(MPI_REQUEST_NULL);
      start_part(data + begin, static_cast<int>(part), &requests_.back());
      begin += part;
    } while (begin < bytes);
  }

  bool test() override {
    for (; done_ < requests_.size(); ++done_) {
      int flag = 0;
      MPI_Status status;
      check_mpi(MPI_Test(&requests_[done_], &flag, &status), is_receive_ ? "a receive" : "a send");
      if (flag == 0) return false;
      if (is_receive_) {
        int count = 0;
        MPI_Get_count(&status, MPI_BYTE, &count);
        received_ += count;
      }
    }
    if (is_receive_ && received_ != bytes_) throw_sizes_differ(received_, bytes_);
    return true;
  }

  void release() override {
    for (; done_ < requests_.size(); ++done_) give_up(requests_[done_], is_receive_);
    free_.push_back(this);
  }

 private:
  std::vector<MpiTransfer*>& free_;  // of the communicator that started it
  bool is_receive_ = false;
  int64_t bytes_ = 0;
  int64_t received_ = 0;
  size_t done_ = 0;
  std::vector<MPI_Request> requests_;
};

// A message in shared memory and MPI's notice of it. Complete when the receiver has it: no more messages lie
// there than there are pending sends.
class SharedSend final : public Transfer {
 public:
  explicit SharedSend(std::vector<SharedSend*>& free) : free_(free) {}

  void start(SharedMessage& message, const void* data, int64_t bytes, auto&& send_notice) {
    message_ = &message;
    message.put(data, bytes);
    notice_ = {message.handle(), bytes};
    send_notice(&notice_, &request_);
  }
  bool test() override {
    if (request_ != MPI_REQUEST_NULL) {
      int flag = 0;
      check_mpi(MPI_Test(&request_, &flag, MPI_STATUS_IGNORE), "a send");
      if (flag == 0) return false;
    }
    return !message_->full();
  }
  void release() override {
    give_up(request_, false);
    free_.push_back(this);
  }

 private:
  std::vector<SharedSend*>& free_;
  SharedMessage* message_ = nullptr;
  SharedNotice notice_;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

class SharedReceive final : public Transfer {
 public:
  // Segments of others, mapped once.
  using Mapped = std::vector<std::unique_ptr<SharedMessage>>;

  explicit SharedReceive(std::vector<SharedReceive*>& free) : free_(free) {}

  void start(Mapped& mapped, void* data, int64_t bytes, auto&& receive_notice) {
    mapped_ = &mapped;
    data_ = data;
    bytes_ = bytes;
    received_ = -1;
    done_ = false;
    receive_notice(&notice_, &request_);
    under_way().push_back(this);
  }
  bool test() override {
    advance();
    if (received_ >= 0 && received_ != bytes_) throw_sizes_differ(received_, bytes_);
    return done_;
  }
  void release() override {
    give_up(request_, true);
    std::erase(under_way(), this);
    free_.push_back(this);
  }
  // Whatever this process waits for, messages that others have put for it are taken meanwhile: their senders
  // may wait for that.
  static void advance_all() {
    for (SharedReceive* receive : under_way()) receive->advance();
  }

 private:
  static std::vector<SharedReceive*>& under_way() {
    static std::vector<SharedReceive*> receives;
    return receives;
  }
  void advance() {
    if (received_ >= 0) return;
    int flag = 0;
    MPI_Status status;
    check_mpi(MPI_Test(&request_, &flag, &status), "a receive");
    if (flag == 0) return;
    int count = 0;
    MPI_Get_count(&status, MPI_BYTE, &count);
    received_ = count == sizeof(notice_) ? notice_.bytes : count;  // too short for shared memory
    if (received_ != bytes_) return;
    find().take(data_, bytes_);
    done_ = true;
  }
  SharedMessage& find() {
    for (const auto& message : *mapped_)
      if (message->handle().token == notice_.segment.token) return *message;
    std::optional<SharedSegment> segment = SharedSegment::open(notice_.segment);
    if (!segment) throw CommunicationError("the sender's shared memory cannot be mapped");
    return *mapped_->emplace_back(std::make_unique<SharedMessage>(std::move(*segment)));
  }

  std::vector<SharedReceive*>& free_;
  Mapped* mapped_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t received_ = -1;  // bytes of the message that has come
  bool done_ = false;
  SharedNotice notice_;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

// Whether all processes of `handle` can map memory that one of them makes. Collective.
bool share_memory(MPI_Comm handle) {
  int rank = 0, size = 0, on_host = 0;
  MPI_Comm_rank(handle, &rank);
  MPI_Comm_size(handle, &size);
  MPI_Comm host;
  check_mpi(MPI_Comm_split_type(handle, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  MPI_Comm_size(host, &on_host);
  MPI_Comm_free(&host);
  std::optional<SharedSegment> segment;
  if (rank == 0) segment = SharedSegment::create(1);
  SharedSegment::Handle made = segment ? segment->handle() : SharedSegment::Handle{};
  check_mpi(MPI_Bcast(&made, sizeof(made), MPI_BYTE, 0, handle), "MPI_Bcast");
  if (rank != 0) segment = SharedSegment::open(made);
  int reached = on_host == size && segment ? 1 : 0;
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &reached, 1, MPI_INT, MPI_MIN, handle), "MPI_Allreduce");
  return reached == 1;
}

class MpiCommunicator final : public Communicator {
 public:
  // Takes over `handle`. Collective.
  MpiCommunicator(MPI_Comm handle, int64_t max_part, bool shared_memory)
      : handle_(handle), max_part_(max_part), shared_memory_wanted_(shared_memory) {
    check_mpi(MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(handle_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(handle_, &size_), "MPI_Comm_size");
    shared_memory_ = shared_memory && size_ > 1 && share_memory(handle_);
  }
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0) MPI_Comm_free(&handle_);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

 protected:
  Transfer* start_send(Channel channel, const void* data, int64_t bytes, int destination) override {
    const auto send = [&](const void* part, int count, MPI_Request* request) {
      check_mpi(MPI_Isend(part, count, MPI_BYTE, destination, static_cast<int>(channel), handle_, request),
                "MPI_Isend");
    };
    if (in_shared_memory(channel, bytes)) {
      SharedSend* transfer = shared_sends_.take();
      transfer->start(
          free_message(bytes), data, bytes,
          [&](const SharedNotice* notice, MPI_Request* request) { send(notice, sizeof(*notice), request); });
      return transfer;
    }
    MpiTransfer* transfer = transfers_.take();
    transfer->start(static_cast<std::byte*>(const_cast<void*>(data)), bytes, max_part_, false, send);
    return transfer;
  }
  Transfer* start_receive(Channel channel, void* data, int64_t bytes, int source) override {
    const auto receive = [&](void* part, int count, MPI_Request* request) {
      check_mpi(MPI_Irecv(part, count, MPI_BYTE, source, static_cast<int>(channel), handle_, request),
                "MPI_Irecv");
    };
    if (in_shared_memory(channel, bytes)) {
      SharedReceive* transfer = shared_receives_.take();
      transfer->start(mapped_, data, bytes, [&](SharedNotice* notice, MPI_Request* request) {
        receive(notice, sizeof(*notice), request);
      });
      return transfer;
    }
    MpiTransfer* transfer = transfers_.take();
    transfer->start(static_cast<std::byte*>(data), bytes, max_part_, true, receive);
    return transfer;
  }
  std::unique_ptr<Communicator> make_group(int color, int key, const std::vector<int>& members) override {
    MPI_Comm group = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(handle_, members.empty() ? MPI_UNDEFINED : color, key, &group),
              "MPI_Comm_split");
    if (group == MPI_COMM_NULL) return nullptr;
    return std::make_unique<MpiCommunicator>(group, max_part_, shared_memory_wanted_);
  }
  bool shares_memory() const override { return shared_memory_; }
  void progress() override { SharedReceive::advance_all(); }

 private:
  bool in_shared_memory(Channel channel, int64_t bytes) const {
    return shared_memory_ && channel == Channel::point_to_point && bytes >= kSharedBytes;
  }
  // Memory for a message of this rank that no other lies in.
  SharedMessage& free_message(int64_t bytes) {
    for (const auto& message : messages_)
      if (!message->full() && message->capacity() >= bytes) return *message;
    std::optional<SharedSegment> segment = SharedSegment::create(SharedMessage::segment_bytes(bytes));
    if (!segment) throw CommunicationError("the system gives no shared memory of {} bytes", bytes);
    return *messages_.emplace_back(std::make_unique<SharedMessage>(std::move(*segment)));
  }

  MPI_Comm handle_;
  int64_t max_part_;
  bool shared_memory_wanted_;
  bool shared_memory_ = false;
  int rank_ = 0;
  int size_ = 0;
  TransferPool<MpiTransfer> transfers_;
  TransferPool<SharedSend> shared_sends_;
  TransferPool<SharedReceive> shared_receives_;
  std::vector<std::unique_ptr<SharedMessage>> messages_;  // this rank's
  SharedReceive::Mapped mapped_;                          // of others
};

}  // namespace

std::unique_ptr<Communicator> mpi_world(int64_t max_message_bytes, bool shared_memory) {
  TRANSXSSM_CHECK(max_message_bytes > 0 && max_message_bytes <= INT32_MAX, "{} bytes", max_message_bytes);
  int initialized = 0;
  MPI_Initialized(&initialized);
  TRANSXSSM_CHECK(initialized != 0, "MPI is not initialised");
  MPI_Comm world = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(world, max_message_bytes, shared_memory);
}

}  // namespace transxssm
