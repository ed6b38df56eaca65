// A group of ranks that exchange tensors. Every implementation answers every method; size one is identity.
// Reductions on the host are this project's own: partial sums are exchanged pairwise and added in rank order,
// so ranks as threads and ranks as processes give the same bits, and every rank holds the same bits.
//
// A communicator belongs to the thread of its rank. Every wait has a time limit, after which it throws
// CommunicationError naming the communicator, the operation, its number and the ranks waited for.
//
// Tensors may lie in a device's memory where a transport for them is attached (device_transport.h): then a
// call is ordered on the rank's stream as an operation is, and may return before it is done.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace transxssm {

enum class ReduceOp { sum, max };

class Communicator;
class DeviceTransport;
class SharedWindow;

// What a rank waits for, as a progress observer sees it. The pointers live as long as the communicator.
struct WaitStatus {
  const char* communicator;  // its name
  const char* operation;     // "all_reduce", "receive", ...
  int64_t sequence;          // number of that operation on this communicator, from 0
  int peer;                  // world rank of the first rank waited for
};

// Called with a status when a rank begins to wait in earnest (not for what completes at once) and with null
// when the wait is over, unless it ended in an error: the others still have to learn what this rank waited
// for while it goes. One for the process, set before the first communication; it must be quick and not throw.
using WaitObserver = void (*)(const WaitStatus* status);
void set_wait_observer(WaitObserver observer);

// What a rank waits for, as the wait sees it.
class Awaited {
 public:
  virtual ~Awaited() = default;
  // True once all of it is there; may do the work that brings it. Throws CommunicationError.
  virtual bool poll() = 0;
  // After a poll: this rank of the communicator is still waited for.
  virtual bool is_missing(int rank) const = 0;
  // The time limit runs from here: from the wait's start, unless there are signs of life.
  using TimePoint = std::chrono::steady_clock::time_point;
  virtual TimePoint last_sign(TimePoint start) const { return start; }
  // The rank has nothing else to do meanwhile, which observers are told.
  virtual bool is_idle() const { return true; }
};

// One message under way, owned by the communicator that started it.
class Transfer {
 public:
  virtual ~Transfer() = default;
  // True once complete, and from then on. Throws CommunicationError where the transport failed.
  virtual bool test() = 0;
  // True once work that the rank's stream is given from now on finds the message there or gone; may make the
  // stream wait, never the host.
  virtual bool join() { return test(); }
  // Gives the transfer back to its communicator; one that is not complete is cancelled.
  virtual void release() = 0;
};

// A pending send, receive or sum; the tensor must stay alive and untouched until wait(). A request that is
// destroyed before its wait() is cancelled. Must not outlive its communicator.
class Request {
 public:
  enum class Kind : uint8_t { send, receive, all_reduce };

  Request() = default;
  Request(Communicator& communicator, Transfer* transfer, Kind kind, int peer, int64_t sequence)
      : communicator_(&communicator), transfer_(transfer), kind_(kind), peer_(peer), sequence_(sequence) {}
  // A sum that wait() forms.
  Request(Communicator& communicator, const Tensor& summand)
      : communicator_(&communicator), kind_(Kind::all_reduce), summand_(summand) {}
  Request(Request&& other) noexcept { *this = std::move(other); }
  Request& operator=(Request&& other) noexcept;
  ~Request() { cancel(); }
  void wait();  // nothing to do where nothing is pending
  bool test();  // true where nothing is pending any more; never waits
  bool pending() const { return transfer_ != nullptr || summand_; }

 private:
  void cancel();

  Communicator* communicator_ = nullptr;
  Transfer* transfer_ = nullptr;
  Kind kind_ = Kind::send;
  int peer_ = 0;
  int64_t sequence_ = 0;
  Tensor summand_;
};

// What this rank sent through one communicator so far: the payload of collectives and point-to-point
// messages.
struct Traffic {
  int64_t bytes_sent = 0;
  int64_t messages = 0;
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Ranks of equal color form a group, ordered by key, then by rank here. A negative color joins no group and
  // gets null. Collective. The group shares this communicator's time limit and collective checks.
  std::unique_ptr<Communicator> split(int color, int key);

  // Asynchronous; messages between a pair of ranks arrive in the order sent. Contiguous tensors of one size
  // on both sides. They never mix with the messages of collectives.
  Request send(const Tensor& tensor, int destination);
  Request receive(const Tensor& tensor, int source);

  // x of every rank becomes the rank-ordered reduction r0 + r1 + ...; f32, f64, or bf16 (summed in f32,
  // rounded once). A maximum keeps NaN. All
  // ranks together send 2 (size - 1) x bytes of x.
  void all_reduce(const Tensor& x, ReduceOp op = ReduceOp::sum);
  // all_reduce(x) that is done after wait(): the same sums and bytes. On a device it runs beside what the
  // rank's stream is given until then, where its transport can; wait() holds up the stream, not the host. On
  // the host, where nobody else would do the work, wait() does it. Ranks start and wait in one order.
  Request start_all_reduce(const Tensor& x);
  // `output` is piece rank() of the reduction of `input`, which holds size() equal pieces. `output` may be
  // that piece of `input`. A rank sends (size - 1) / size of the input.
  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op = ReduceOp::sum);
  // `output` holds the `input` of every rank in rank order. Any dtype. `input` may be piece rank() of
  // `output`. A rank sends size - 1 times its input.
  void all_gather(const Tensor& input, const Tensor& output);
  void broadcast(const Tensor& x, int root);  // any dtype
  void barrier();
  // Work of a rank that is no communication and may take long, such as files: where it has some, `fn`.
  // Returns when every rank's is done. The time limit is for signs of life, which ranks exchange along a tree
  // meanwhile, not for the work; but a rank that has worked for kWorkLimit gives none any more. `fn` runs on
  // another thread and must not communicate; where it throws, so does this at once, and the other ranks are
  // left.
  void work(const char* operation, const std::function<void()>& fn = {});
  static constexpr std::chrono::hours kWorkLimit{1};

  // Name in messages, such as "tp" or "pp 0->1".
  const std::string& name() const { return name_; }
  void set_name(std::string name) { name_ = std::move(name); }
  // Rank in the communicator that all splits began with, which is how messages name ranks.
  int world_rank(int rank) const {
    return world_ranks_.empty() ? rank : world_ranks_[static_cast<size_t>(rank)];
  }
  const Traffic& traffic() const { return traffic_; }
  int64_t num_collectives() const { return num_collectives_; }

  // For this communicator, those it was split from and those split from any of them. Default 300 s.
  void set_timeout(std::chrono::nanoseconds limit) { settings_->timeout = limit; }
  std::chrono::nanoseconds timeout() const { return settings_->timeout; }
  // Of every rank of the world, for messages: they name the hosts of ranks that are waited for. As above for
  // whom.
  void set_hosts(std::vector<std::string> hosts) { settings_->hosts = std::move(hosts); }
  // Before each collective all ranks compare what they are about to do, and say who differs. Slow: for
  // debugging. All ranks must agree on it.
  void set_collective_checks(bool on) { settings_->check_collectives = on; }
  // For tensors in a device's memory, here and in the groups split from here on. Collective.
  void use_device(std::unique_ptr<DeviceTransport> transport);

 protected:
  // Messages on different channels never match.
  enum class Channel { point_to_point = 0, collective = 1 };

  Communicator();

  // Start one message of `bytes` to or from another rank. Messages of one pair of ranks, direction and
  // channel arrive in the order sent.
  virtual Transfer* start_send(Channel channel, const void* data, int64_t bytes, int destination) = 0;
  virtual Transfer* start_receive(Channel channel, void* data, int64_t bytes, int source) = 0;
  // A number that no group split here with this rank has, nor any later one unless make_group tells it.
  virtual int free_group_number() const = 0;
  // Without communication; `members` are the ranks here of the new group in its order, empty where this rank
  // joins none. The groups of one split share `number`, which is free on all ranks here.
  virtual std::unique_ptr<Communicator> make_group(int color, int number,
                                                   const std::vector<int>& members) = 0;
  // Throws CommunicationError where another rank is known to have failed.
  virtual void check_peers() {}
  // Called again and again in every wait: moves on whatever this process has under way, on any communicator.
  virtual void progress() {}
  // All ranks are processes that can map each other's memory (shared_segment.h). The same on all of them.
  virtual bool shares_memory() const { return false; }

 private:
  friend class Request;
  friend class DeviceTransport;
  friend class Uncounted;
  class Neighbour;
  class WorkTree;
  struct Settings {
    std::chrono::nanoseconds timeout = std::chrono::seconds(300);
    bool check_collectives = false;
    std::vector<std::string> hosts;
  };
  struct Pending {
    Transfer* transfer;
    int peer;
  };

  bool on_device(const Tensor& tensor) const;
  void count_sent(int64_t bytes);
  // Where it throws, the error says where this rank was.
  void wait_until(Awaited& awaited, const char* operation, int64_t sequence);
  void wait_for(std::span<Pending> pending, const char* operation, int64_t sequence);
  // Of the collectives on the host, where ranks share memory, else null. The first call makes it: collective.
  SharedWindow* window();
  void begin_collective(const char* operation, int64_t bytes, int64_t detail);
  void post_send(const void* data, int64_t bytes, int destination);
  void post_receive(void* data, int64_t bytes, int source);
  void check_same_collective(int64_t bytes, int64_t detail);
  // `all` is [size(), bytes], with this rank's row in place: the others' become what they are there.
  void gather_in_rounds(std::byte* all, int64_t bytes);
  void finish_posted();
  std::string where(const char* operation, int64_t sequence) const;
  // Cuts `input` into size() pieces, piece r starting at element r * num_elements / size(), and writes the
  // rank-ordered reduction of piece rank() to `output`. With `gathered`, writes every piece there as well; it
  // may then be `input` itself, and `output` its piece.
  template <class T>
  void reduce_pieces(const T* input, int64_t num_elements, T* output, T* gathered, ReduceOp op);

  std::string name_ = "world";
  std::vector<int> world_ranks_;  // empty: the identity
  std::shared_ptr<Settings> settings_;
  Traffic traffic_;
  int64_t num_collectives_ = 0;
  int64_t num_sends_ = 0;
  int64_t num_receives_ = 0;
  const char* operation_ = "";        // of the collective under way
  std::vector<Pending> posted_;       // its messages
  std::vector<std::byte> chunks_;     // incoming partial sums, one chunk a rank
  std::vector<const void*> sources_;  // of one sum
  std::unique_ptr<DeviceTransport> device_;
  bool window_tried_ = false;
  std::unique_ptr<SharedWindow> window_;
};

}  // namespace transxssm
