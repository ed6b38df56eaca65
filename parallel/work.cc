// Work that is no communication: ranks that are done wait for those that are not, as long as these show that
// they are alive. Signs of life and the word that all are done go along a binary tree.
#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>
#include <thread>

#include "parallel/communicator.h"
#include "runtime/trace.h"

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kLongestBeat(5);
constexpr int kBeatsOfALimit = 4;

enum class Sign : uint8_t { alive, done };

// fn on a thread of its own: the rank's own thread is the only one that may communicate.
class Helper {
 public:
  explicit Helper(const std::function<void()>& fn) {
    if (!fn) return;
    done_.store(false, std::memory_order_relaxed);
    thread_ = std::thread([this, &fn] {
      try {
        fn();
      } catch (...) {
        error_ = std::current_exception();
      }
      done_.store(true, std::memory_order_release);
    });
  }
  ~Helper() {
    if (thread_.joinable()) thread_.join();
  }
  // Throws what fn threw.
  bool done() {
    if (!done_.load(std::memory_order_acquire)) return false;
    if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
    return true;
  }

 private:
  std::atomic<bool> done_{true};
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace

// What this rank and one next to it in the tree tell one another: signs of life until one is done, which of a
// child means all ranks below it, of a parent all ranks.
class Communicator::Neighbour {
 public:
  Neighbour(Communicator& group, int rank) : group_(group), rank_(rank), last_(Clock::now()), told_(last_) {
    listen();
  }
  Neighbour(const Neighbour&) = delete;
  ~Neighbour() {
    for (Transfer* transfer : {receive_, send_})
      if (transfer != nullptr) transfer->release();
  }

  int rank() const { return rank_; }
  bool is_done() const { return is_done_; }
  bool knows() const { return out_ == Sign::done && send_ == nullptr; }  // that this rank is done
  // What comes next has to come from it: a sign, or that it takes one.
  bool is_awaited() const { return !is_done_ || send_ != nullptr; }
  Clock::time_point last_sign() const { return last_; }

  void look(Clock::time_point now) {
    // That a message has left says nothing of a rank that still owes its own: MPI buffers small ones.
    if (send_ != nullptr && send_->test()) std::exchange(send_, nullptr)->release();
    while (receive_ != nullptr && receive_->test()) {
      std::exchange(receive_, nullptr)->release();
      last_ = now;
      is_done_ = in_ == Sign::done;
      if (!is_done_) listen();
    }
  }
  // Signs of life only now and then, and only where the last one has been taken.
  void tell(Sign sign, Clock::time_point now, Clock::duration beat) {
    if (send_ != nullptr || out_ == Sign::done || (sign == Sign::alive && now < told_ + beat)) return;
    out_ = sign;
    told_ = now;
    if (is_done_) last_ = now;  // from here on it has to take this
    send_ = group_.start_send(Channel::collective, &out_, sizeof(out_), rank_);
  }

 private:
  void listen() { receive_ = group_.start_receive(Channel::collective, &in_, sizeof(in_), rank_); }

  Communicator& group_;
  int rank_;
  Clock::time_point last_, told_;
  Sign in_ = Sign::alive, out_ = Sign::alive;
  bool is_done_ = false;
  Transfer* receive_ = nullptr;
  Transfer* send_ = nullptr;
};

class Communicator::WorkTree final : public Awaited {
 public:
  WorkTree(Communicator& group, Helper& helper)
      : group_(group),
        helper_(helper),
        start_(Clock::now()),
        beat_(std::min<Clock::duration>(kLongestBeat, group.timeout() / kBeatsOfALimit)) {
    const int rank = group.rank();
    if (rank > 0) neighbours_.push_back(std::make_unique<Neighbour>(group, (rank - 1) / 2));
    for (const int child : {2 * rank + 1, 2 * rank + 2})
      if (child < group.size()) neighbours_.push_back(std::make_unique<Neighbour>(group, child));
  }

  // First until this rank's own work is done, then until all is and its neighbours know.
  void await_all() { own_is_over_ = true; }
  bool poll() override {
    const Clock::time_point now = Clock::now();
    const bool mine = helper_.done();
    bool below = mine;
    for (const auto& n : neighbours_) {
      n->look(now);
      if (!is_parent(*n)) below = below && n->is_done();
    }
    const bool all = group_.rank() == 0 ? below : neighbours_.front()->is_done();
    bool told = true;
    for (const auto& n : neighbours_) {
      const bool over = is_parent(*n) ? below : all;
      if (over || mine || now - start_ < kWorkLimit) n->tell(over ? Sign::done : Sign::alive, now, beat_);
      told = told && n->knows();
    }
    return own_is_over_ ? all && told : mine;
  }
  // Those that are silent for too long; else a child, else the parent.
  bool is_missing(int rank) const override {
    const auto overdue = [&](const Neighbour& n) {
      return n.is_awaited() && Clock::now() - n.last_sign() > group_.timeout();
    };
    bool any_overdue = false, any_child = false;
    for (const auto& n : neighbours_) {
      any_overdue = any_overdue || overdue(*n);
      any_child = any_child || (!is_parent(*n) && n->is_awaited());
    }
    for (const auto& n : neighbours_) {
      if (n->rank() != rank || !n->is_awaited()) continue;
      return any_overdue ? overdue(*n) : !any_child || !is_parent(*n);
    }
    return false;
  }
  Clock::time_point last_sign(Clock::time_point) const override {
    Clock::time_point oldest = Clock::now();
    for (const auto& n : neighbours_)
      if (n->is_awaited()) oldest = std::min(oldest, n->last_sign());
    return oldest;
  }
  bool is_idle() const override { return own_is_over_; }

 private:
  bool is_parent(const Neighbour& n) const { return n.rank() < group_.rank(); }

  Communicator& group_;
  Helper& helper_;
  const Clock::time_point start_;
  const Clock::duration beat_;
  std::vector<std::unique_ptr<Neighbour>> neighbours_;  // the parent first
  bool own_is_over_ = false;
};

void Communicator::work(const char* operation, const std::function<void()>& fn) {
  if (size() == 1) {
    if (fn) fn();
    return;
  }
  const Span span(Activity::waiting, operation);
  begin_collective(operation, 0, 0);
  Helper helper(fn);
  WorkTree tree(*this, helper);
  wait_until(tree, operation, num_collectives_ - 1);
  tree.await_all();
  wait_until(tree, operation, num_collectives_ - 1);
}

}  // namespace transxssm
