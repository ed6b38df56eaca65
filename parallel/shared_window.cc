#include "parallel/shared_window.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "parallel/combine.h"
#include "parallel/device_transport.h"
#include "runtime/trace.h"

namespace transxssm {
namespace {

constexpr int64_t kBlockBytes = int64_t{256} << 10;  // of a rank's slot: a few of them fit a core's cache
constexpr int kSlots = 4;                            // rounds by which ranks may be apart
constexpr int64_t kWholeBytes = int64_t{32}
                                << 10;  // of all ranks' summands: one meeting costs more than sums
constexpr int64_t kLine = 64;

constexpr int64_t round_up(int64_t x, int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

// Of the summands for one rank in a slot.
int64_t piece_bytes(int n) {
  return std::max(kLine, kBlockBytes / n / kLine * kLine);
}

void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace

// What one rank has done; the rank itself writes, the others read. Rounds are numbered over all collectives.
struct SharedWindow::Progress {
  using Counter = std::atomic<int64_t>;
  static_assert(Counter::is_always_lock_free);
  struct Call {
    int64_t operation, bytes, detail;
    bool operator==(const Call&) const = default;
  };

  alignas(kLine) Counter written;  // rounds for which its slot is filled
  alignas(kLine) Counter reduced;  // rounds whose sums of its pieces lie in its sums
  alignas(kLine) Counter read;     // rounds of others' slots and sums that it has no more need of
  alignas(kLine) std::array<Call, kSlots> calls;  // of the collective that began with such a round
};

// One counter of all other ranks, or of one, at `value`.
class SharedWindow::Reached final : public Awaited {
 public:
  Reached(const SharedWindow& window, Progress::Counter Progress::*counter, int64_t value, int from)
      : window_(window),
        counter_(counter),
        value_(value),
        next_(from < 0 ? 0 : from),
        end_(from < 0 ? window.n_ : from + 1) {}
  bool poll() override {
    while (next_ < end_ && !is_missing(next_)) ++next_;
    return next_ == end_;
  }
  bool is_missing(int rank) const override {
    return rank >= next_ && rank < end_ && rank != window_.rank_ &&
           (window_.progress(rank).*counter_).load(std::memory_order_acquire) < value_;
  }

 private:
  const SharedWindow& window_;
  Progress::Counter Progress::*counter_;
  int64_t value_;
  int next_;  // all before are there
  int end_;
};

int64_t SharedWindow::segment_bytes(int num_ranks) {
  const int64_t piece = piece_bytes(num_ranks);
  return num_ranks * (static_cast<int64_t>(sizeof(Progress)) + kSlots * (num_ranks + 1) * piece);
}

SharedWindow::SharedWindow(SharedSegment segment, int rank, int num_ranks, Wait wait)
    : segment_(std::move(segment)), rank_(rank), n_(num_ranks), wait_(std::move(wait)) {
  TRANSXSSM_CHECK(segment_.bytes() == segment_bytes(n_), "a window of {} bytes", segment_.bytes());
}

// Fresh memory is zero, which is what fresh counters are.
SharedWindow::Progress& SharedWindow::progress(int rank) const {
  return reinterpret_cast<Progress*>(segment_.data())[rank];
}

std::byte* SharedWindow::slot(int rank, int64_t round) const {
  const int64_t bytes = (n_ + 1) * piece_bytes(n_);
  return segment_.data() + n_ * static_cast<int64_t>(sizeof(Progress)) +
         (rank * kSlots + round % kSlots) * bytes;
}

std::byte* SharedWindow::sums(int rank, int64_t round) const {
  return slot(rank, round) + n_ * piece_bytes(n_);
}

void SharedWindow::begin(Operation operation, int64_t bytes, int64_t detail) {
  await(Counter::read, round_ + 1 - kSlots);  // others have seen what was there
  progress(rank_).calls[static_cast<size_t>(round_ % kSlots)] = {static_cast<int64_t>(operation), bytes,
                                                                 detail};
}

void SharedWindow::await(Counter counter, int64_t value, int from) {
  Reached reached(*this,
                  counter == Counter::written   ? &Progress::written
                  : counter == Counter::reduced ? &Progress::reduced
                                                : &Progress::read,
                  value, from);
  if (!reached.poll()) {
    const Span span(Activity::waiting, "wait");
    wait_(reached);
  }
  if (counter == Counter::written && value == round_ + 1) check_same_call(from);
}

void SharedWindow::check_same_call(int from) const {
  const auto call = [&](int r) { return progress(r).calls[static_cast<size_t>(round_ % kSlots)]; };
  for (int r = from < 0 ? 0 : from; r < (from < 0 ? n_ : from + 1); ++r) {
    if (call(r) == call(rank_)) continue;
    constexpr std::array<const char*, 5> names = {"all_reduce", "reduce_scatter", "all_gather", "broadcast",
                                                  "barrier"};
    throw CommunicationError(
        "rank {} of the group runs {} of {} bytes here: the ranks run different programs", r,
        names[static_cast<size_t>(call(r).operation) % names.size()], call(r).bytes);
  }
}

template <class Give, class Take>
void SharedWindow::exchange(int64_t rounds, Give&& give, Take&& take, int from) {
  Progress& mine = progress(rank_);
  for (int64_t k = 0; k <= rounds; ++k) {
    if (k < rounds) {
      await(Counter::read, round_ + k + 1 - kSlots);
      give(k);
      mine.written.store(round_ + k + 1, std::memory_order_release);
    }
    if (k > 0) {
      await(Counter::written, round_ + k, from);
      take(k - 1);
      mine.read.store(round_ + k, std::memory_order_release);
    }
  }
  round_ += rounds;
}

void SharedWindow::combine(const void* own, int64_t round, int64_t offset, DType dtype, void* out,
                           int64_t count, ReduceOp op) {
  sources_.clear();
  for (int r = 0; r < n_; ++r) sources_.push_back(r == rank_ ? own : slot(r, round) + offset);
  combine_in_rank_order(sources_, dtype, out, count, op);
}

// Every rank sums everything: one meeting.
void SharedWindow::reduce_whole(const Tensor& x, ReduceOp op) {
  exchange(
      1, [&](int64_t) { write_shared(slot(rank_, round_), x.raw(), x.num_bytes()); },
      [&](int64_t) { combine(x.raw(), round_, 0, x.dtype(), x.raw(), x.num_elements(), op); });
}

// Rank r sums elements [start(r), start(r + 1)), `chunk` of them a round, and others copy its sums.
void SharedWindow::reduce_pieces(const Tensor& x, ReduceOp op) {
  const int64_t count = x.num_elements(), element = dtype_bytes(x.dtype());
  const int64_t piece = piece_bytes(n_), chunk = piece / element;
  const int64_t rounds = ((count + n_ - 1) / n_ + chunk - 1) / chunk;
  const auto start = [&](int r) { return count * r / n_; };
  const auto part = [&](int r, int64_t k) {
    return static_cast<std::byte*>(x.raw()) + (start(r) + k * chunk) * element;
  };
  const auto part_count = [&](int r, int64_t k) {
    return std::clamp<int64_t>(start(r + 1) - start(r) - k * chunk, 0, chunk);
  };
  const auto part_bytes = [&](int r, int64_t k) { return part_count(r, k) * element; };
  const auto others = [&](auto&& fn) {
    for (int i = 1; i < n_; ++i) fn((rank_ + i) % n_);
  };
  Progress& mine = progress(rank_);
  for (int64_t k = 0; k <= rounds + 1; ++k) {
    if (k < rounds) {
      await(Counter::read, round_ + k + 1 - kSlots);
      others([&](int r) { write_shared(slot(rank_, round_ + k) + r * piece, part(r, k), part_bytes(r, k)); });
      mine.written.store(round_ + k + 1, std::memory_order_release);
    }
    if (k >= 1 && k <= rounds) {
      const int64_t j = k - 1;
      std::byte* const own = part(rank_, j);
      await(Counter::written, round_ + k);
      combine(own, round_ + j, rank_ * piece, x.dtype(), own, part_count(rank_, j), op);
      write_shared(sums(rank_, round_ + j), own, part_bytes(rank_, j));
      mine.reduced.store(round_ + k, std::memory_order_release);
    }
    if (k >= 2) {
      const int64_t j = k - 2;
      await(Counter::reduced, round_ + k - 1);
      others([&](int r) { copy_bytes(part(r, j), sums(r, round_ + j), part_bytes(r, j)); });
      mine.read.store(round_ + k - 1, std::memory_order_release);
    }
  }
  round_ += rounds;
}

void SharedWindow::all_reduce(const Tensor& x, ReduceOp op) {
  begin(Operation::all_reduce, x.num_bytes(), static_cast<int64_t>(op));
  return n_ * x.num_bytes() <= kWholeBytes ? reduce_whole(x, op) : reduce_pieces(x, op);
}

void SharedWindow::reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op) {
  begin(Operation::reduce_scatter, input.num_bytes(), static_cast<int64_t>(op));
  const int64_t count = output.num_elements(), element = dtype_bytes(input.dtype());
  const int64_t piece = piece_bytes(n_), chunk = piece / element;
  const auto part = [&](int r, int64_t k) {
    return static_cast<const std::byte*>(input.raw()) + (r * count + k * chunk) * element;
  };
  const auto part_count = [&](int64_t k) { return std::min(chunk, count - k * chunk); };
  exchange((count + chunk - 1) / chunk,
           [&](int64_t k) {
             for (int r = 0; r < n_; ++r)
               if (r != rank_)
                 write_shared(slot(rank_, round_ + k) + r * piece, part(r, k), part_count(k) * element);
           },
           [&](int64_t k) {
             combine(part(rank_, k), round_ + k, rank_ * piece, input.dtype(),
                     static_cast<std::byte*>(output.raw()) + k * chunk * element, part_count(k), op);
           });
}

void SharedWindow::all_gather(const Tensor& input, const Tensor& output) {
  begin(Operation::all_gather, input.num_bytes(), 0);
  const int64_t bytes = input.num_bytes(), chunk = n_ * piece_bytes(n_);
  const auto* const in = static_cast<const std::byte*>(input.raw());
  auto* const out = static_cast<std::byte*>(output.raw());
  const auto part_bytes = [&](int64_t k) { return std::min(chunk, bytes - k * chunk); };
  exchange((bytes + chunk - 1) / chunk,
           [&](int64_t k) { write_shared(slot(rank_, round_ + k), in + k * chunk, part_bytes(k)); },
           [&](int64_t k) {
             for (int r = 0; r < n_; ++r)
               if (r != rank_) copy_bytes(out + r * bytes + k * chunk, slot(r, round_ + k), part_bytes(k));
           });
}

void SharedWindow::broadcast(const Tensor& x, int root) {
  begin(Operation::broadcast, x.num_bytes(), root);
  const int64_t bytes = x.num_bytes(), chunk = n_ * piece_bytes(n_);
  auto* const data = static_cast<std::byte*>(x.raw());
  const auto part_bytes = [&](int64_t k) { return std::min(chunk, bytes - k * chunk); };
  exchange((bytes + chunk - 1) / chunk,
           [&](int64_t k) {
             if (rank_ == root) write_shared(slot(root, round_ + k), data + k * chunk, part_bytes(k));
           },
           [&](int64_t k) {
             if (rank_ != root) copy_bytes(data + k * chunk, slot(root, round_ + k), part_bytes(k));
           },
           root);
}

void SharedWindow::barrier() {
  begin(Operation::barrier, 0, 0);
  exchange(
      1, [](int64_t) {}, [](int64_t) {});
}

// By messages: rank 0 makes the segment, the others say whether they reach it.
SharedWindow* Communicator::window() {
  if (window_tried_ || !shares_memory()) return window_.get();
  window_tried_ = true;  // first: what follows goes by messages
  const Uncounted preparation(*this);
  const char* const operation = operation_;
  std::optional<SharedSegment> segment;
  SharedSegment::Handle handle;
  if (rank() == 0) segment = SharedSegment::create(SharedWindow::segment_bytes(size()));
  if (segment) handle = segment->handle();
  broadcast(Tensor(&handle, DType::u8, {sizeof(handle)}), 0);
  if (rank() != 0) segment = SharedSegment::open(handle);
  double without = segment ? 0 : 1;
  all_reduce(Tensor(&without, DType::f64, {1}), ReduceOp::max);
  operation_ = operation;
  if (without > 0) return nullptr;
  window_ = std::make_unique<SharedWindow>(std::move(*segment), rank(), size(), [this](Awaited& awaited) {
    wait_until(awaited, operation_, num_collectives_ - 1);
  });
  return window_.get();
}

}  // namespace transxssm
