#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>

#include "parallel/device_transport.h"
#include "parallel/mpi_messages.h"

namespace transxssm {
namespace {

constexpr int64_t kSharedBytes =
    4096;  // from here on a message goes through shared memory, where there is any

// What all communicators of one mpi_world() have in common. Groups have a number instead of an MPI
// communicator, so that making one is a matter of our own messages, each with its time limit.
struct World {
  explicit World(int64_t max_part) : messages(max_part, kSetUpLimit) {}
  MpiMessages messages;
  std::vector<uint64_t> hosts;  // by rank; 0: shares memory with none
  int next_group = 1;           // 0 is the world
};

class MpiCommunicator final : public Communicator {
 public:
  // `ranks`: of the world. Groups that have a rank in common have different numbers.
  MpiCommunicator(std::shared_ptr<World> world, std::vector<int> ranks, int rank, int number)
      : world_(std::move(world)), ranks_(std::move(ranks)), rank_(rank), first_tag_(kNumChannels * number) {
    if (first_tag_ + kNumChannels - 1 > world_->messages.max_tag())
      throw CommunicationError("MPI tells at most {} groups apart",
                               world_->messages.max_tag() / kNumChannels);
    find_shared_memory();
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }

  void find_shared_memory() {
    const auto host = [&](int r) {
      return world_->hosts.empty() ? 0 : world_->hosts[static_cast<size_t>(r)];
    };
    shared_memory_ =
        ranks_.size() > 1 && host(ranks_.front()) != 0 &&
        std::all_of(ranks_.begin(), ranks_.end(), [&](int r) { return host(r) == host(ranks_.front()); });
  }

 protected:
  Transfer* start_send(Channel channel, const void* data, int64_t bytes, int destination) override {
    const int to = ranks_[static_cast<size_t>(destination)];
    return in_shared_memory(channel, bytes)
               ? world_->messages.send(free_message(bytes), data, bytes, to, tag(channel))
               : world_->messages.send(data, bytes, to, tag(channel));
  }
  Transfer* start_receive(Channel channel, void* data, int64_t bytes, int source) override {
    const int from = ranks_[static_cast<size_t>(source)];
    return in_shared_memory(channel, bytes)
               ? world_->messages.receive(mapped_, data, bytes, from, tag(channel))
               : world_->messages.receive(data, bytes, from, tag(channel));
  }
  int free_group_number() const override { return world_->next_group; }
  std::unique_ptr<Communicator> make_group(int, int number, const std::vector<int>& members) override {
    world_->next_group = number + 1;
    if (members.empty()) return nullptr;
    std::vector<int> ranks;
    for (int member : members) ranks.push_back(ranks_[static_cast<size_t>(member)]);
    const auto me = std::find(members.begin(), members.end(), rank_) - members.begin();
    return std::make_unique<MpiCommunicator>(world_, std::move(ranks), static_cast<int>(me), number);
  }
  bool shares_memory() const override { return shared_memory_; }
  void progress() override { MpiMessages::drive(); }

 private:
  static constexpr int kNumChannels = 2;
  int tag(Channel channel) const { return first_tag_ + static_cast<int>(channel); }
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

  std::shared_ptr<World> world_;
  std::vector<int> ranks_;
  int rank_;
  int first_tag_;
  bool shared_memory_ = false;
  std::vector<std::unique_ptr<SharedMessage>> messages_;  // this rank's
  MappedMessages mapped_;                                 // of others
};

// Of every rank: a number of its host if all ranks with that number can map memory that one of them makes,
// else 0. Collective.
std::vector<uint64_t> find_hosts(Communicator& world, int host) {
  struct Seen {
    uint64_t host = 0;
    SharedSegment::Handle made;
  };
  const int64_t n = world.size();
  const Uncounted preparation(world);
  Seen mine{host_number(host), {}};
  const std::optional<SharedSegment> segment = SharedSegment::create(1);
  if (segment) mine.made = segment->handle();
  std::vector<Seen> all(static_cast<size_t>(n));
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Seen));
  world.all_gather(Tensor(&mine, DType::u8, {kBytes}), Tensor(all.data(), DType::u8, {n * kBytes}));
  const auto first =
      std::find_if(all.begin(), all.end(), [&](const Seen& other) { return other.host == mine.host; });
  uint8_t reached = SharedSegment::open(first->made).has_value() ? 1 : 0;
  std::vector<uint8_t> all_reached(static_cast<size_t>(n));
  world.all_gather(Tensor(&reached, DType::u8, {1}), Tensor(all_reached.data(), DType::u8, {n}));
  std::set<uint64_t> apart;
  for (size_t r = 0; r < all.size(); ++r)
    if (all_reached[r] == 0) apart.insert(all[r].host);
  std::vector<uint64_t> hosts;
  for (const Seen& seen : all) hosts.push_back(apart.contains(seen.host) ? 0 : seen.host);
  return hosts;
}

}  // namespace

std::unique_ptr<Communicator> mpi_world(int64_t max_message_bytes, bool shared_memory, int host) {
  const auto made = std::make_shared<World>(max_message_bytes);
  std::vector<int> ranks(static_cast<size_t>(made->messages.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  auto world = std::make_unique<MpiCommunicator>(made, std::move(ranks), made->messages.rank(), 0);
  world->set_timeout(kSetUpLimit);
  if (shared_memory) {
    made->hosts = find_hosts(*world, host);
    world->find_shared_memory();
  }
  return world;
}

}  // namespace transxssm
