#include "parallel/mpi_messages.h"

#define OMPI_SKIP_MPICXX 1  // the C interface only
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <thread>

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;

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

// Transfers of one kind, made once and used again. They belong to the process and live as long: MPI may work
// on one whose communicator is gone.
template <class T>
class TransferPool {
 public:
  static T* take() {
    TransferPool& pool = instance();
    if (pool.free_.empty()) {
      pool.owned_.push_back(std::make_unique<T>());
      pool.free_.reserve(pool.owned_.size());
      pool.free_.push_back(pool.owned_.back().get());
    }
    T* transfer = pool.free_.back();
    pool.free_.pop_back();
    return transfer;
  }
  static void give_back(T* transfer) { instance().free_.push_back(transfer); }

 private:
  static TransferPool& instance() {
    static TransferPool* pool = new TransferPool;
    return *pool;
  }
  std::vector<std::unique_ptr<T>> owned_;
  std::vector<T*> free_;
};

// Messages that were given up, which MPI may still be working on.
//
// A receive is cancelled; one that has begun to arrive, and any send, has to be finished, which the other
// side may never allow. Memory of the caller could then be read or written by MPI after the caller has freed
// it: from there on this process makes no call that lets MPI move data, and every communication throws.
constexpr std::chrono::seconds kGrace(2);  // to finish one; more would delay the end of a job that failed

bool memory_is_lost = false;

void check_memory() {
  if (memory_is_lost)
    throw CommunicationError(
        "a message that was under way had to be given up before: this process cannot communicate any more");
}

bool test_request(MPI_Request& request) {
  int flag = 0;
  return request == MPI_REQUEST_NULL ||
         (MPI_Test(&request, &flag, MPI_STATUS_IGNORE) == MPI_SUCCESS && flag != 0);
}

void cancel(MPI_Request& request) {
  if (request != MPI_REQUEST_NULL) MPI_Cancel(&request);
}

// Given up, in memory of their own: nobody waits for them, they only must not be used again too early.
struct Lingering {
  std::function<bool()> try_again;  // true: over
};
std::vector<Lingering>& lingering() {
  static auto* list = new std::vector<Lingering>;
  return *list;
}

// One message, in parts of at most the communicator's limit.
class MpiTransfer final : public Transfer {
 public:
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
    check_memory();
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

  // The caller's memory is its own again, or lost.
  void release() override {
    if (done_ < requests_.size() && !give_up()) return;  // never used again
    TransferPool<MpiTransfer>::give_back(this);
  }

 private:
  bool give_up() {
    if (memory_is_lost) return false;
    for (size_t i = done_; i < requests_.size() && is_receive_; ++i) cancel(requests_[i]);
    const auto end = Clock::now() + kGrace;
    for (;;) {
      while (done_ < requests_.size() && test_request(requests_[done_])) ++done_;
      if (done_ == requests_.size()) return true;
      if (Clock::now() > end) break;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    memory_is_lost = true;
    return false;
  }

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
  void start(SharedMessage& message, const void* data, int64_t bytes, auto&& send_notice) {
    message_ = &message;
    message.put(data, bytes);
    notice_ = {message.handle(), bytes};
    send_notice(&notice_, &request_);
  }
  bool test() override {
    check_memory();
    if (request_ != MPI_REQUEST_NULL) {
      int flag = 0;
      check_mpi(MPI_Test(&request_, &flag, MPI_STATUS_IGNORE), "a send");
      if (flag == 0) return false;
    }
    return !message_->full();
  }
  void release() override {
    if (!over()) lingering().push_back({[this] { return over(); }});
  }

 private:
  bool over() {
    if (!test_request(request_)) return false;
    TransferPool<SharedSend>::give_back(this);
    return true;
  }

  SharedMessage* message_ = nullptr;
  SharedNotice notice_;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

class SharedReceive final : public Transfer {
 public:
  void start(MappedMessages& mapped, void* data, int64_t bytes, auto&& receive_notice) {
    mapped_ = &mapped;
    data_ = data;
    bytes_ = bytes;
    received_ = -1;
    done_ = false;
    receive_notice(&notice_, &request_);
    under_way().push_back(this);
  }
  bool test() override {
    check_memory();
    advance();
    if (received_ >= 0 && received_ != bytes_) throw_sizes_differ(received_, bytes_);
    return done_;
  }
  void release() override {
    std::erase(under_way(), this);
    cancel(request_);
    if (!over()) lingering().push_back({[this] { return over(); }});
  }
  // Messages that others have put for this process are taken: their senders may wait for that.
  static void advance_all() {
    for (SharedReceive* receive : under_way()) receive->advance();
  }

 private:
  static std::vector<SharedReceive*>& under_way() {
    static auto* receives = new std::vector<SharedReceive*>;
    return *receives;
  }
  bool over() {
    if (!test_request(request_)) return false;
    TransferPool<SharedReceive>::give_back(this);
    return true;
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

  MappedMessages* mapped_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t received_ = -1;  // bytes of the message that has come
  bool done_ = false;
  SharedNotice notice_;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

// A duplicate of MPI's world, in which nobody else's messages are.
MPI_Comm duplicate_world(std::chrono::nanoseconds limit) {
  MPI_Comm world = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Comm_idup(MPI_COMM_WORLD, &world, &request), "MPI_Comm_idup");
  const auto end = Clock::now() + limit;
  for (int flag = 0; flag == 0;) {
    check_mpi(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "MPI_Comm_idup");
    if (flag != 0) break;
    if (Clock::now() > end)
      throw CommunicationError("waited {:.0f} s for all ranks to meet: one of them hangs before its start",
                               std::chrono::duration<double>(limit).count());
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  check_mpi(MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  return world;
}

}  // namespace

struct MpiMessages::Handle {
  MPI_Comm comm = MPI_COMM_NULL;
  void send(const void* part, int count, int rank, int tag, MPI_Request* request) const {
    check_mpi(MPI_Isend(part, count, MPI_BYTE, rank, tag, comm, request), "MPI_Isend");
  }
  void receive(void* part, int count, int rank, int tag, MPI_Request* request) const {
    check_mpi(MPI_Irecv(part, count, MPI_BYTE, rank, tag, comm, request), "MPI_Irecv");
  }
};

MpiMessages::MpiMessages(int64_t max_part, std::chrono::nanoseconds limit)
    : max_part_(max_part), handle_(std::make_unique<Handle>()) {
  TRANSXSSM_CHECK(max_part > 0 && max_part <= INT32_MAX, "{} bytes", max_part);
  int initialized = 0, found = 0;
  MPI_Initialized(&initialized);
  TRANSXSSM_CHECK(initialized != 0, "MPI is not initialised");
  check_memory();
  handle_->comm = duplicate_world(limit);
  int* max_tag = nullptr;
  check_mpi(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &max_tag, &found), "MPI_Comm_get_attr");
  max_tag_ = found != 0 ? *max_tag : 32767;  // what MPI promises at least
  check_mpi(MPI_Comm_rank(handle_->comm, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(handle_->comm, &size_), "MPI_Comm_size");
}

MpiMessages::~MpiMessages() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0 && !memory_is_lost) MPI_Comm_free(&handle_->comm);
}

Transfer* MpiMessages::send(const void* data, int64_t bytes, int rank, int tag) {
  check_memory();
  MpiTransfer* transfer = TransferPool<MpiTransfer>::take();
  transfer->start(static_cast<std::byte*>(const_cast<void*>(data)), bytes, max_part_, false,
                  [&](const void* part, int count, MPI_Request* request) {
                    handle_->send(part, count, rank, tag, request);
                  });
  return transfer;
}

Transfer* MpiMessages::receive(void* data, int64_t bytes, int rank, int tag) {
  check_memory();
  MpiTransfer* transfer = TransferPool<MpiTransfer>::take();
  transfer->start(static_cast<std::byte*>(data), bytes, max_part_, true,
                  [&](void* part, int count, MPI_Request* request) {
                    handle_->receive(part, count, rank, tag, request);
                  });
  return transfer;
}

Transfer* MpiMessages::send(SharedMessage& message, const void* data, int64_t bytes, int rank, int tag) {
  check_memory();
  SharedSend* transfer = TransferPool<SharedSend>::take();
  transfer->start(message, data, bytes, [&](const SharedNotice* notice, MPI_Request* request) {
    handle_->send(notice, sizeof(*notice), rank, tag, request);
  });
  return transfer;
}

Transfer* MpiMessages::receive(MappedMessages& mapped, void* data, int64_t bytes, int rank, int tag) {
  check_memory();
  SharedReceive* transfer = TransferPool<SharedReceive>::take();
  transfer->start(mapped, data, bytes, [&](SharedNotice* notice, MPI_Request* request) {
    handle_->receive(notice, sizeof(*notice), rank, tag, request);
  });
  return transfer;
}

void MpiMessages::drive() {
  check_memory();
  SharedReceive::advance_all();
  std::erase_if(lingering(), [](const Lingering& l) { return l.try_again(); });
  int flag = 0;  // nobody sends this; MPI looks at everything else
  MPI_Iprobe(MPI_ANY_SOURCE, 0, MPI_COMM_SELF, &flag, MPI_STATUS_IGNORE);
}

}  // namespace transxssm
