#include "parallel/communicator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <tuple>

#include "parallel/combine.h"
#include "parallel/device_transport.h"
#include "parallel/shared_window.h"
#include "runtime/trace.h"

namespace transxssm {
namespace {

constexpr int64_t kChunkBytes = int64_t{256}
                                << 10;  // of a reduction's messages: fits a core's cache with its sum
constexpr int64_t kSmallBytes = int64_t{16} << 10;  // up to here rows are gathered in few messages
}  // namespace

Request& Request::operator=(Request&& other) noexcept {
  if (this == &other) return *this;
  cancel();
  communicator_ = other.communicator_;
  transfer_ = std::exchange(other.transfer_, nullptr);
  kind_ = other.kind_;
  peer_ = other.peer_;
  sequence_ = other.sequence_;
  summand_ = std::exchange(other.summand_, {});
  return *this;
}

void Request::cancel() {
  if (transfer_ != nullptr) std::exchange(transfer_, nullptr)->release();
  summand_ = {};
}

void Request::wait() {
  if (summand_) return communicator_->all_reduce(std::exchange(summand_, {}));
  if (transfer_ == nullptr) return;
  const char* const operation = kind_ == Kind::send      ? "send"
                                : kind_ == Kind::receive ? "receive"
                                                         : "all_reduce";
  const Span span(kind_ == Kind::receive ? Activity::bubble : Activity::communication, operation);
  Communicator::Pending pending{std::exchange(transfer_, nullptr), peer_};
  communicator_->wait_for({&pending, 1}, operation, sequence_);
}

bool Request::test() {
  if (transfer_ != nullptr && transfer_->test()) cancel();
  return !pending();
}

Communicator::Communicator() : settings_(std::make_shared<Settings>()) {}

Communicator::~Communicator() = default;

void Communicator::use_device(std::unique_ptr<DeviceTransport> transport) {
  device_ = std::move(transport);
}

bool Communicator::on_device(const Tensor& tensor) const {
  return device_ != nullptr && tensor.num_bytes() > 0 && device_runtime().owns(tensor.raw());
}

void Communicator::wait_for(std::span<Pending> pending, const char* operation, int64_t sequence) {
  class Messages final : public Awaited {
   public:
    explicit Messages(std::span<Pending> messages) : pending_(messages) {}
    ~Messages() override {  // those left after an error
      for (Pending& p : pending_) {
        if (p.transfer != nullptr) std::exchange(p.transfer, nullptr)->release();
      }
    }
    bool poll() override {
      for (size_t i = first_; i < pending_.size(); ++i) {
        if (pending_[i].transfer != nullptr && pending_[i].transfer->join()) {
          std::exchange(pending_[i].transfer, nullptr)->release();
        }
        if (i == first_ && pending_[i].transfer == nullptr) ++first_;
      }
      return first_ == pending_.size();
    }
    bool is_missing(int rank) const override {
      return std::any_of(pending_.begin(), pending_.end(),
                         [&](const Pending& p) { return p.transfer != nullptr && p.peer == rank; });
    }

   private:
    std::span<Pending> pending_;
    size_t first_ = 0;  // all before are complete
  } messages(pending);
  wait_until(messages, operation, sequence);
}

Request Communicator::send(const Tensor& tensor, int destination) {
  TRANSXSSM_CHECK(tensor.is_contiguous(), "send on '{}'", name_);
  TRANSXSSM_CHECK(destination >= 0 && destination < size() && destination != rank(), "send to {} of {}",
                  destination, size());
  count_sent(tensor.num_bytes());
  Transfer* transfer =
      on_device(tensor) ? device_->start_send(tensor, destination)
                        : start_send(Channel::point_to_point, tensor.raw(), tensor.num_bytes(), destination);
  return Request(*this, transfer, Request::Kind::send, destination, num_sends_++);
}

Request Communicator::receive(const Tensor& tensor, int source) {
  TRANSXSSM_CHECK(tensor.is_contiguous(), "receive on '{}'", name_);
  TRANSXSSM_CHECK(source >= 0 && source < size() && source != rank(), "receive from {} of {}", source,
                  size());
  Transfer* transfer = on_device(tensor)
                           ? device_->start_receive(tensor, source)
                           : start_receive(Channel::point_to_point, tensor.raw(), tensor.num_bytes(), source);
  return Request(*this, transfer, Request::Kind::receive, source, num_receives_++);
}

void Communicator::count_sent(int64_t bytes) {
  traffic_.bytes_sent += bytes;
  ++traffic_.messages;
}

void Communicator::post_send(const void* data, int64_t bytes, int destination) {
  count_sent(bytes);
  posted_.push_back({start_send(Channel::collective, data, bytes, destination), destination});
}

void Communicator::post_receive(void* data, int64_t bytes, int source) {
  posted_.push_back({start_receive(Channel::collective, data, bytes, source), source});
}

void Communicator::finish_posted() {
  struct Clear {
    std::vector<Pending>& posted;
    ~Clear() { posted.clear(); }
  } clear{posted_};  // also where the wait throws
  wait_for(posted_, operation_, num_collectives_ - 1);
}

void Communicator::begin_collective(const char* operation, int64_t bytes, int64_t detail) {
  operation_ = operation;
  ++num_collectives_;
  if (device_ != nullptr) device_->check();
  if (settings_->check_collectives) check_same_collective(bytes, detail);
}

void Communicator::check_same_collective(int64_t bytes, int64_t detail) {
  struct Signature {
    std::array<char, 16> operation{};
    int64_t bytes, detail, sequence;
    bool operator==(const Signature&) const = default;
    std::string to_string() const {
      return fmt::format("{} #{} of {} bytes", operation.data(), sequence, bytes);
    }
  };
  Signature mine{{}, bytes, detail, num_collectives_ - 1};
  std::string_view(operation_).copy(mine.operation.data(), mine.operation.size() - 1);
  std::vector<Signature> all(static_cast<size_t>(size()), mine);
  const Traffic payload = traffic_;
  gather_in_rounds(reinterpret_cast<std::byte*>(all.data()), sizeof(mine));
  traffic_ = payload;
  for (int r = 0; r < size(); ++r) {
    const Signature& other = all[static_cast<size_t>(r)];
    if (r == rank() || other == mine) continue;
    throw CommunicationError("On '{}' rank {} runs {} where rank {} runs {}: their programs differ.", name_,
                             world_rank(rank()), mine.to_string(), world_rank(r), other.to_string());
  }
}

template <class T>
void Communicator::reduce_pieces(const T* input, int64_t num_elements, T* output, T* gathered, ReduceOp op) {
  const int n = size();
  const int me = rank();
  const auto start = [&](int r) { return num_elements * r / n; };
  const int64_t longest = (num_elements + n - 1) / n;
  const int64_t chunk = std::min<int64_t>(longest, kChunkBytes / static_cast<int64_t>(sizeof(T)));
  const int64_t rounds = (longest + chunk - 1) / chunk;
  const auto chunk_count = [&](int r, int64_t round) {
    return std::clamp<int64_t>(start(r + 1) - start(r) - round * chunk, 0, chunk);
  };
  const size_t needed = static_cast<size_t>(n * chunk) * sizeof(T);
  if (chunks_.size() < needed) chunks_.resize(needed);
  T* const incoming = reinterpret_cast<T*>(chunks_.data());  // [n, chunk], row `me` unused

  for (int64_t round = 0; round <= rounds; ++round) {
    const int64_t mine = chunk_count(me, round);
    for (int r = 0; r < n; ++r) {
      if (r == me) continue;
      if (mine > 0) post_receive(incoming + r * chunk, mine * static_cast<int64_t>(sizeof(T)), r);
      if (const int64_t count = chunk_count(r, round); count > 0) {
        post_send(input + start(r) + round * chunk, count * static_cast<int64_t>(sizeof(T)), r);
      }
    }
    if (gathered != nullptr && round > 0) {  // the sums of the round before travel with this round's summands
      const int64_t done = chunk_count(me, round - 1);
      for (int r = 0; r < n; ++r) {
        if (r == me) continue;
        const int64_t count = chunk_count(r, round - 1);
        const int64_t at = (round - 1) * chunk;
        if (count > 0) post_receive(gathered + start(r) + at, count * static_cast<int64_t>(sizeof(T)), r);
        if (done > 0) post_send(output + at, done * static_cast<int64_t>(sizeof(T)), r);
      }
    }
    finish_posted();
    if (mine > 0) {
      const T* own = input + start(me) + round * chunk;
      sources_.clear();
      for (int r = 0; r < n; ++r) sources_.push_back(r == me ? own : incoming + r * chunk);
      combine_in_rank_order(sources_, DTypeOf<T>::value, output + round * chunk, mine, op);
    }
  }
}

void Communicator::all_reduce(const Tensor& x, ReduceOp op) {
  const Span span(Activity::communication, "all_reduce");
  TRANSXSSM_CHECK(x.is_contiguous(), "all_reduce on '{}'", name_);
  if (size() == 1) return;
  if (on_device(x)) return device_->all_reduce(x, op);
  begin_collective("all_reduce", x.num_bytes(), static_cast<int64_t>(op));
  if (x.num_elements() == 0) return;
  if (SharedWindow* shared = window()) {
    const int64_t count = x.num_elements(), n = size();
    const int64_t own = count * (rank() + 1) / n - count * rank() / n;
    count_sent((count + (n - 2) * own) * dtype_bytes(x.dtype()));
    return shared->all_reduce(x, op);
  }
  with_elements(x, "all_reduce", [&](auto* data) {
    reduce_pieces(data, x.num_elements(), data + x.num_elements() * rank() / size(), data, op);
  });
}

Request Communicator::start_all_reduce(const Tensor& x) {
  TRANSXSSM_CHECK(x.is_contiguous(), "all_reduce on '{}'", name_);
  if (size() == 1) return {};
  if (!on_device(x)) return Request(*this, x);
  const Span span(Activity::communication, "start of all_reduce");
  Transfer* transfer = device_->start_all_reduce(x);
  return Request(*this, transfer, Request::Kind::all_reduce, rank() == 0 ? 1 : 0, num_collectives_ - 1);
}

void Communicator::reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op) {
  const Span span(Activity::communication, "reduce_scatter");
  TRANSXSSM_CHECK(input.is_contiguous() && output.is_contiguous(), "reduce_scatter on '{}'", name_);
  TRANSXSSM_CHECK(input.dtype() == output.dtype() && input.num_elements() == output.num_elements() * size(),
                  "reduce_scatter of {} into {} elements on {} ranks", input.num_elements(),
                  output.num_elements(), size());
  if (input.num_elements() == 0 && size() == 1) return;
  if (on_device(input)) return device_->reduce_scatter(input, output, op);
  if (size() == 1) {
    if (input.raw() != output.raw())
      std::memcpy(output.raw(), input.raw(), static_cast<size_t>(input.num_bytes()));
    return;
  }
  begin_collective("reduce_scatter", input.num_bytes(), static_cast<int64_t>(op));
  if (input.num_elements() == 0) return;
  if (SharedWindow* shared = window()) {
    count_sent((size() - 1) * output.num_bytes());
    return shared->reduce_scatter(input, output, op);
  }
  with_elements(input, "reduce_scatter", [&]<class T>(T* in) {
    reduce_pieces<T>(in, input.num_elements(), output.data<T>(), nullptr, op);
  });
}

void Communicator::all_gather(const Tensor& input, const Tensor& output) {
  const Span span(Activity::communication, "all_gather");
  TRANSXSSM_CHECK(input.is_contiguous() && output.is_contiguous(), "all_gather on '{}'", name_);
  TRANSXSSM_CHECK(input.dtype() == output.dtype() && output.num_elements() == input.num_elements() * size(),
                  "all_gather of {} into {} elements on {} ranks", input.num_elements(),
                  output.num_elements(), size());
  if (on_device(input)) return device_->all_gather(input, output);
  const int64_t bytes = input.num_bytes();
  std::byte* const out = static_cast<std::byte*>(output.raw());
  if (size() > 1) begin_collective("all_gather", bytes, 0);
  if (bytes == 0) return;
  if (out + rank() * bytes != input.raw()) {
    std::memcpy(out + rank() * bytes, input.raw(), static_cast<size_t>(bytes));
  }
  if (size() == 1) return;
  if (SharedWindow* shared = window()) {
    count_sent((size() - 1) * bytes);
    return shared->all_gather(input, output);
  }
  if (bytes <= kSmallBytes) return gather_in_rounds(out, bytes);
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    post_receive(out + r * bytes, bytes, r);
    post_send(out + rank() * bytes, bytes, r);
  }
  finish_posted();
}

// After a round a rank has twice as many rows, its own and those of the ranks behind it (Bruck et al. 1997):
// as many bytes as by a message for each row, in log2(n) messages.
void Communicator::gather_in_rounds(std::byte* all, int64_t bytes) {
  const int n = size(), me = rank();
  const auto row = [bytes](int r) { return static_cast<size_t>(r * bytes); };
  if (chunks_.size() < row(n)) chunks_.resize(row(n));
  std::memcpy(chunks_.data(), all + row(me), row(1));
  for (int have = 1; have < n; have *= 2) {
    const int count = std::min(have, n - have);
    post_receive(chunks_.data() + row(have), count * bytes, (me + have) % n);
    post_send(chunks_.data(), count * bytes, (me + n - have) % n);
    finish_posted();
  }
  std::memcpy(all + row(me), chunks_.data(), row(n - me));
  std::memcpy(all, chunks_.data() + row(n - me), row(me));
}

void Communicator::broadcast(const Tensor& x, int root) {
  const Span span(Activity::communication, "broadcast");
  TRANSXSSM_CHECK(x.is_contiguous() && root >= 0 && root < size(), "broadcast from {} on '{}'", root, name_);
  if (size() == 1) return;
  if (on_device(x)) return device_->broadcast(x, root);
  begin_collective("broadcast", x.num_bytes(), root);
  if (x.num_bytes() == 0) return;
  if (SharedWindow* shared = window()) {
    if (rank() == root) count_sent((size() - 1) * x.num_bytes());
    return shared->broadcast(x, root);
  }
  // Along a binomial tree: a rank is told by the one whose distance from the root lacks its own's lowest bit.
  const int n = size(), distance = (rank() - root + n) % n;
  const auto at = [&](int d) { return (root + d) % n; };
  int bit = 1;
  while (bit < n && (distance & bit) == 0) bit *= 2;
  if (distance != 0) {
    post_receive(x.raw(), x.num_bytes(), at(distance - bit));
    finish_posted();
  }
  for (bit /= 2; bit > 0; bit /= 2)
    if (distance + bit < n) post_send(x.raw(), x.num_bytes(), at(distance + bit));
  finish_posted();
}

// Dissemination (Hensgen, Finkel and Manber 1988): after round k a rank has heard, through others, of 2^k
// ranks.
void Communicator::barrier() {
  const Span span(Activity::communication, "barrier");
  if (size() == 1) return;
  begin_collective("barrier", 0, 0);
  if (SharedWindow* shared = window()) return shared->barrier();
  for (int distance = 1; distance < size(); distance *= 2) {
    post_receive(nullptr, 0, (rank() - distance + size()) % size());
    post_send(nullptr, 0, (rank() + distance) % size());
    finish_posted();
  }
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  struct Wish {
    int32_t color, key, world_rank, free_number;
  };
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Wish));
  Wish mine{color, key, world_rank(rank()), free_group_number()};
  std::vector<Wish> all(static_cast<size_t>(size()));
  const Traffic payload = traffic_;  // what makes groups is not the program's payload
  all_gather(Tensor(&mine, DType::u8, {kBytes}), Tensor(all.data(), DType::u8, {size() * kBytes}));
  traffic_ = payload;
  int number = 0;
  for (const Wish& wish : all) number = std::max(number, wish.free_number);
  std::vector<int> members;
  for (int r = 0; r < size(); ++r) {
    if (color >= 0 && all[static_cast<size_t>(r)].color == color) members.push_back(r);
  }
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return all[static_cast<size_t>(a)].key < all[static_cast<size_t>(b)].key;
  });
  std::unique_ptr<Communicator> group = make_group(color, number, members);
  if (group == nullptr) return nullptr;
  group->settings_ = settings_;
  for (int member : members) group->world_ranks_.push_back(all[static_cast<size_t>(member)].world_rank);
  if (device_ != nullptr) group->device_ = device_->make_group(*group);
  return group;
}

}  // namespace transxssm
