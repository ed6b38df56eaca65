#include "parallel/local.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

namespace transxssm {
namespace {

struct Mailbox;

// One side of a message. The side that comes second copies, straight from the sender's tensor to the
// receiver's.
class LocalTransfer final : public Transfer {
 public:
  enum State { pending, done, mismatch };

  explicit LocalTransfer(std::vector<LocalTransfer*>& free) : free_(free) {}
  bool test() override;
  void release() override;

  Mailbox* mailbox = nullptr;
  bool is_send = false;
  void* data = nullptr;
  int64_t bytes = 0;
  int64_t peer_bytes = 0;
  std::atomic<int> state{done};

 private:
  std::vector<LocalTransfer*>& free_;  // of the communicator that started it
};

// Messages of one sender, receiver and channel that wait for their other side, in order: all sends or all
// receives.
struct Mailbox {
  std::mutex mutex;
  std::vector<LocalTransfer*> waiting;  // short: a message waits for its receive or the other way round
};

bool LocalTransfer::test() {
  const int now = state.load(std::memory_order_acquire);
  if (now == mismatch) {
    throw CommunicationError(
        "a message of {} bytes met a receive of {} bytes: the ranks run different programs",
        is_send ? bytes : peer_bytes, is_send ? peer_bytes : bytes);
  }
  return now == done;
}

void LocalTransfer::release() {
  if (state.load(std::memory_order_acquire) == pending) {  // cancelled
    std::lock_guard lock(mailbox->mutex);
    std::erase(mailbox->waiting, this);
  }
  free_.push_back(this);
}

struct Group {
  Group(int num_ranks, std::shared_ptr<std::atomic<bool>> flag)
      : size(num_ranks),
        aborted(std::move(flag)),
        mailboxes(static_cast<size_t>(2 * num_ranks * num_ranks)) {}
  Mailbox& mailbox(int channel, int source, int destination) {
    return mailboxes[static_cast<size_t>((channel * size + source) * size + destination)];
  }

  const int size;
  const std::shared_ptr<std::atomic<bool>> aborted;
  std::vector<Mailbox> mailboxes;
  // Groups that some of their members have still to pick up, by number of the split and color.
  std::mutex mutex;
  std::map<std::pair<int, int>, std::pair<std::shared_ptr<Group>, size_t>> unclaimed;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size; }

 protected:
  Transfer* start_send(Channel channel, const void* data, int64_t bytes, int destination) override {
    return start(group_->mailbox(static_cast<int>(channel), rank_, destination), true,
                 const_cast<void*>(data), bytes);
  }
  Transfer* start_receive(Channel channel, void* data, int64_t bytes, int source) override {
    return start(group_->mailbox(static_cast<int>(channel), source, rank_), false, data, bytes);
  }

  int free_group_number() const override { return next_group_; }
  std::unique_ptr<Communicator> make_group(int color, int number, const std::vector<int>& members) override {
    next_group_ = number + 1;
    if (members.empty()) return nullptr;
    std::shared_ptr<Group> child;
    {
      std::lock_guard lock(group_->mutex);
      const auto at = group_->unclaimed.try_emplace({number, color}).first;
      auto& [made, claims] = at->second;
      if (made == nullptr) made = std::make_shared<Group>(static_cast<int>(members.size()), group_->aborted);
      child = made;
      if (++claims == members.size()) group_->unclaimed.erase(at);
    }
    const auto me = std::find(members.begin(), members.end(), rank_) - members.begin();
    return std::make_unique<LocalCommunicator>(std::move(child), static_cast<int>(me));
  }

  void check_peers() override {
    if (group_->aborted->load(std::memory_order_acquire)) throw CommunicationError("another rank failed");
  }

 private:
  Transfer* start(Mailbox& mailbox, bool is_send, void* data, int64_t bytes) {
    if (free_.empty()) {
      owned_.push_back(std::make_unique<LocalTransfer>(free_));
      free_.reserve(owned_.size());
      free_.push_back(owned_.back().get());
    }
    LocalTransfer* mine = free_.back();
    free_.pop_back();
    mine->mailbox = &mailbox;
    mine->is_send = is_send;
    mine->data = data;
    mine->bytes = bytes;
    std::lock_guard lock(mailbox.mutex);
    if (mailbox.waiting.empty() || mailbox.waiting.front()->is_send == is_send) {
      mine->state.store(LocalTransfer::pending, std::memory_order_relaxed);
      mailbox.waiting.push_back(mine);
      return mine;
    }
    LocalTransfer* other = mailbox.waiting.front();
    mailbox.waiting.erase(mailbox.waiting.begin());
    mine->peer_bytes = other->bytes;
    other->peer_bytes = bytes;
    const bool fits = bytes == other->bytes;
    if (fits && bytes > 0) {
      std::memcpy(is_send ? other->data : data, is_send ? data : other->data, static_cast<size_t>(bytes));
    }
    const int state = fits ? LocalTransfer::done : LocalTransfer::mismatch;
    mine->state.store(state, std::memory_order_relaxed);
    other->state.store(state, std::memory_order_release);  // its owner may go on at once
    return mine;
  }

  std::shared_ptr<Group> group_;
  int rank_;
  int next_group_ = 0;  // of the groups split from this one
  std::vector<std::unique_ptr<LocalTransfer>> owned_;
  std::vector<LocalTransfer*> free_;
};

}  // namespace

std::unique_ptr<Communicator> single_rank() {
  return std::make_unique<LocalCommunicator>(
      std::make_shared<Group>(1, std::make_shared<std::atomic<bool>>(false)), 0);
}

void run_as_ranks(int n, const std::function<void(Communicator&)>& fn) {
  TRANSXSSM_CHECK(n >= 1, "{} ranks", n);
  const auto aborted = std::make_shared<std::atomic<bool>>(false);
  const auto group = std::make_shared<Group>(n, aborted);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < n; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        LocalCommunicator world(group, rank);
        fn(world);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (first == nullptr) first = std::current_exception();
        aborted->store(true, std::memory_order_release);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace transxssm
