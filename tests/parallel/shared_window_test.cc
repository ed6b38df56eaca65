// Collectives in shared memory, with threads that map the segment by themselves as ranks; as processes they
// run the suite (communicator_mpi.cc).
#include "parallel/shared_window.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "parallel/shared_message.h"
#include "tests/parallel/communicator_elements.h"

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;

void wait_a_minute(Awaited& awaited) {
  for (const auto end = Clock::now() + std::chrono::minutes(1); !awaited.poll();) {
    if (Clock::now() > end) throw CommunicationError("nobody came");
    std::this_thread::yield();
  }
}

// As processes do, each rank maps the memory by itself. A race shows under the thread sanitizer only where
// they share one mapping.
enum class Mapping { each, one };

void as_ranks(int n, const std::function<void(int rank, SharedWindow&)>& fn,
              const SharedWindow::Wait& wait = wait_a_minute, Mapping mapping = Mapping::each) {
  std::optional<SharedSegment> made = SharedSegment::create(SharedWindow::segment_bytes(n));
  ASSERT_TRUE(made);
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r)
    threads.emplace_back([&, r] {
      std::optional<SharedSegment> mine =
          mapping == Mapping::one ? made->lend() : SharedSegment::open(made->handle());
      ASSERT_TRUE(mine);
      SharedWindow window(std::move(*mine), r, n, wait);
      fn(r, window);
    });
  for (std::thread& thread : threads) thread.join();
}

template <class T>
Tensor tensor(std::vector<T>& v) {
  return Tensor(v.data(), DTypeOf<T>::value, {static_cast<int64_t>(v.size())});
}

// Less than a line, odd, the most that goes in one meeting and one more, several rounds, and more
// rounds than there are slots.
const std::vector<int64_t> kCounts = {1, 7, 1001, 4096, 4097, 300'001};

class Ranks : public testing::TestWithParam<int> {};

// Every collective in turn, of several rounds and slots used again, all in one mapping.
TEST_P(Ranks, InOneMapping) {
  const int n = GetParam();
  as_ranks(
      n,
      [&](int rank, SharedWindow& window) {
        for (const int64_t count : {int64_t{7}, int64_t{5000}, int64_t{300'001}}) {
          for (int turn = 0; turn < 3; ++turn) {
            std::vector<float> x = elements<float>(rank, count), all(static_cast<size_t>(n * count)),
                               piece(static_cast<size_t>(count));
            window.all_reduce(tensor(x), ReduceOp::sum);
            EXPECT_EQ(x.back(), rank_ordered<float>(n, count - 1, ReduceOp::sum));
            window.broadcast(tensor(x), turn % n);
            std::copy(x.begin(), x.end(), all.begin() + rank * count);
            window.all_gather(tensor(x), tensor(all));
            EXPECT_EQ(all.front(), all[static_cast<size_t>((n - 1) * count)]);
            window.barrier();
            window.reduce_scatter(tensor(all), tensor(piece), ReduceOp::max);
            EXPECT_EQ(piece, x);
          }
        }
      },
      wait_a_minute, Mapping::one);
}

TEST(SharedMessage, InOneMapping) {
  std::optional<SharedSegment> made = SharedSegment::create(SharedMessage::segment_bytes(4000));
  ASSERT_TRUE(made);
  SharedMessage sender(made->lend()), receiver(made->lend());
  std::thread taker([&] {
    for (int i = 0; i < 300; ++i) {
      while (!receiver.full()) std::this_thread::yield();
      std::vector<int32_t> in(static_cast<size_t>(1 + i));
      receiver.take(in.data(), 4 * (1 + i));
      EXPECT_EQ(in, std::vector<int32_t>(static_cast<size_t>(1 + i), i));
    }
  });
  for (int i = 0; i < 300; ++i) {
    while (sender.full()) std::this_thread::yield();
    const std::vector<int32_t> out(static_cast<size_t>(1 + i), i);
    sender.put(out.data(), 4 * (1 + i));
  }
  taker.join();
}

template <class T>
void expect_sums(int n, ReduceOp op) {
  as_ranks(n, [&](int rank, SharedWindow& window) {
    for (const int64_t count : kCounts) {
      std::vector<T> x = elements<T>(rank, count);
      window.all_reduce(tensor(x), op);
      int64_t wrong = 0;
      for (int64_t i = 0; i<count; i += count> 5000 ? 13 : 1)
        wrong += x[static_cast<size_t>(i)] != rank_ordered<T>(n, i, op);
      EXPECT_EQ(wrong, 0) << count;

      std::vector<T> input = elements<T>(rank, n * count), piece(static_cast<size_t>(count));
      const std::vector<T> before = input;
      window.reduce_scatter(tensor(input), tensor(piece), op);
      for (int64_t i = 0; i<count; i += count> 5000 ? 13 : 1)
        wrong += piece[static_cast<size_t>(i)] != rank_ordered<T>(n, rank * count + i, op);
      EXPECT_EQ(wrong, 0) << count;
      EXPECT_EQ(input, before);
    }
  });
}

TEST_P(Ranks, ReduceInRankOrder) {
  expect_sums<float>(GetParam(), ReduceOp::sum);
  if (GetParam() < 4) expect_sums<double>(GetParam(), ReduceOp::max);
}

TEST_P(Ranks, Bf16IsSummedInF32AndRoundedOnce) {
  const int n = GetParam();
  as_ranks(n, [&](int rank, SharedWindow& window) {
    for (const int64_t count : kCounts) {
      std::vector<BFloat16> x(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) x[static_cast<size_t>(i)] = to_bfloat16(element<float>(rank, i));
      window.all_reduce(tensor(x), ReduceOp::sum);
      int64_t wrong = 0;
      for (int64_t i = 0; i < count; ++i) {
        float sum = 0;
        for (int r = 0; r < n; ++r) sum += to_float(to_bfloat16(element<float>(r, i)));
        wrong += x[static_cast<size_t>(i)].bits != to_bfloat16(sum).bits;
      }
      EXPECT_EQ(wrong, 0) << count;
    }
  });
}

TEST_P(Ranks, GatherBroadcastAndMeet) {
  const int n = GetParam();
  std::atomic<int> arrived{0};
  as_ranks(n, [&](int rank, SharedWindow& window) {
    for (const int64_t count : kCounts) {
      std::vector<float> input = elements<float>(rank, count), output(static_cast<size_t>(n * count));
      std::copy(input.begin(), input.end(), output.begin() + rank * count);  // as Communicator does
      window.all_gather(tensor(input), tensor(output));
      for (int r = 0; r < n; ++r)
        EXPECT_EQ(std::memcmp(output.data() + r * count, elements<float>(r, count).data(),
                              static_cast<size_t>(count) * sizeof(float)),
                  0)
            << r;
      for (int root = 0; root < n; ++root) {
        std::vector<float> x = input;
        window.broadcast(tensor(x), root);
        EXPECT_EQ(std::memcmp(x.data(), output.data() + root * count, x.size() * sizeof(float)), 0) << root;
      }
    }
    ++arrived;
    window.barrier();
    EXPECT_EQ(arrived, n);
  });
}

INSTANTIATE_TEST_SUITE_P(SharedWindow, Ranks, testing::Values(2, 3, 4, 8),
                         [](const auto& instance) { return std::to_string(instance.param) + "_ranks"; });

// In the midst of a sum of many rounds a rank stays away: the others' wait is told who is missing.
TEST(SharedWindowErrors, ALostRankIsNamed) {
  std::atomic<int> named{0};
  std::barrier met(3);
  const auto impatient = [&](Awaited& awaited) {
    for (const auto end = Clock::now() + std::chrono::milliseconds(200); !awaited.poll();) {
      if (Clock::now() > end) {
        named += awaited.is_missing(1) && !awaited.is_missing(0) && !awaited.is_missing(2);
        throw CommunicationError("lost");
      }
      std::this_thread::yield();
    }
  };
  as_ranks(
      3,
      [&](int rank, SharedWindow& window) {
        window.barrier();
        met.arrive_and_wait();
        std::vector<float> x(500'000, 1.0F);
        if (rank != 1) {
          EXPECT_THROW(window.all_reduce(tensor(x), ReduceOp::sum), CommunicationError);
        }
        met.arrive_and_wait();
      },
      impatient);
  EXPECT_EQ(named, 2);
}

TEST(SharedWindowErrors, UnlikeCallsAreNoticed) {
  as_ranks(2, [&](int rank, SharedWindow& window) {
    std::vector<float> x(static_cast<size_t>(rank == 0 ? 300'000 : 300'001));
    EXPECT_THROW(window.all_reduce(tensor(x), ReduceOp::sum), CommunicationError);
  });
  as_ranks(2, [&](int rank, SharedWindow& window) {
    std::vector<float> x(10);
    if (rank == 0) {
      EXPECT_THROW(window.all_reduce(tensor(x), ReduceOp::sum), CommunicationError);
    } else {
      EXPECT_THROW(window.barrier(), CommunicationError);
    }
  });
}

TEST(SharedMessage, IsTakenOnceAndLeavesRoomForTheNext) {
  std::optional<SharedSegment> made = SharedSegment::create(SharedMessage::segment_bytes(1000));
  ASSERT_TRUE(made);
  std::optional<SharedSegment> mapped = SharedSegment::open(made->handle());
  ASSERT_TRUE(mapped);
  SharedMessage sender(std::move(*made)), receiver(std::move(*mapped));
  for (const int64_t count : {250, 3}) {
    std::vector<float> out = elements<float>(7, count), in(static_cast<size_t>(count));
    EXPECT_FALSE(sender.full());
    sender.put(out.data(), count * 4);
    EXPECT_TRUE(receiver.full());
    receiver.take(in.data(), count * 4);
    EXPECT_EQ(in, out);
  }
  EXPECT_FALSE(sender.full());
}

TEST(SharedSegment, OpensOnlyTheOneMeant) {
  std::optional<SharedSegment> made = SharedSegment::create(100);
  ASSERT_TRUE(made);
  SharedSegment::Handle other = made->handle();
  other.token += 2;  // the descriptor's number used anew
  EXPECT_FALSE(SharedSegment::open(other));
  other = made->handle();
  other.bytes = 99;
  EXPECT_FALSE(SharedSegment::open(other));
  other = made->handle();
  other.descriptor = 99'999;
  EXPECT_FALSE(SharedSegment::open(other));
  EXPECT_FALSE(SharedSegment::open({}));
}

// Every length and offset of the source, with what lies behind untouched.
TEST(SharedSegment, WritesAllBytesAndNoOthers) {
  alignas(64) std::array<std::byte, 512> to;
  std::array<std::byte, 512> from;
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7 + 1);
  for (size_t bytes = 0; bytes < 300; ++bytes) {
    to.fill(std::byte{0});
    write_shared(to.data(), from.data() + bytes % 5, static_cast<int64_t>(bytes));
    EXPECT_EQ(std::memcmp(to.data(), from.data() + bytes % 5, bytes), 0);
    EXPECT_EQ(to[bytes], std::byte{0});
  }
}

}  // namespace
}  // namespace transxssm
