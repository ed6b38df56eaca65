#include "parallel/mpi_communicator.h"

#define OMPI_SKIP_MPICXX 1  // the C interface only
#include <mpi.h>

#include <algorithm>

namespace transxssm {
namespace {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw CommunicationError("{} failed: {}", call, text);
}

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
    if (is_receive_ && received_ != bytes_) {
      throw CommunicationError(
          "a message of {} bytes met a receive of {} bytes: the ranks run different programs", received_,
          bytes_);
    }
    return true;
  }

  void release() override {
    for (; done_ < requests_.size(); ++done_) {
      MPI_Request& request = requests_[done_];
      if (request == MPI_REQUEST_NULL) continue;
      if (is_receive_) MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
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

class MpiCommunicator final : public Communicator {
 public:
  // Takes over `handle`.
  MpiCommunicator(MPI_Comm handle, int64_t max_part) : handle_(handle), max_part_(max_part) {
    check_mpi(MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(handle_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(handle_, &size_), "MPI_Comm_size");
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
    MpiTransfer* transfer = take();
    transfer->start(static_cast<std::byte*>(const_cast<void*>(data)), bytes, max_part_, false,
                    [&](std::byte* part, int count, MPI_Request* request) {
                      check_mpi(MPI_Isend(part, count, MPI_BYTE, destination, static_cast<int>(channel),
                                          handle_, request),
                                "MPI_Isend");
                    });
    return transfer;
  }
  Transfer* start_receive(Channel channel, void* data, int64_t bytes, int source) override {
    MpiTransfer* transfer = take();
    transfer->start(
        static_cast<std::byte*>(data), bytes, max_part_, true,
        [&](std::byte* part, int count, MPI_Request* request) {
          check_mpi(MPI_Irecv(part, count, MPI_BYTE, source, static_cast<int>(channel), handle_, request),
                    "MPI_Irecv");
        });
    return transfer;
  }
  std::unique_ptr<Communicator> make_group(int color, int key, const std::vector<int>& members) override {
    MPI_Comm group = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(handle_, members.empty() ? MPI_UNDEFINED : color, key, &group),
              "MPI_Comm_split");
    if (group == MPI_COMM_NULL) return nullptr;
    return std::make_unique<MpiCommunicator>(group, max_part_);
  }

 private:
  MpiTransfer* take() {
    if (free_.empty()) {
      owned_.push_back(std::make_unique<MpiTransfer>(free_));
      free_.reserve(owned_.size());
      free_.push_back(owned_.back().get());
    }
    MpiTransfer* transfer = free_.back();
    free_.pop_back();
    return transfer;
  }

  MPI_Comm handle_;
  int64_t max_part_;
  int rank_ = 0;
  int size_ = 0;
  std::vector<std::unique_ptr<MpiTransfer>> owned_;
  std::vector<MpiTransfer*> free_;
};

}  // namespace

std::unique_ptr<Communicator> mpi_world(int64_t max_message_bytes) {
  TRANSXSSM_CHECK(max_message_bytes > 0 && max_message_bytes <= INT32_MAX, "{} bytes", max_message_bytes);
  int initialized = 0;
  MPI_Initialized(&initialized);
  TRANSXSSM_CHECK(initialized != 0, "MPI is not initialised");
  MPI_Comm world = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(world, max_message_bytes);
}

}  // namespace transxssm
