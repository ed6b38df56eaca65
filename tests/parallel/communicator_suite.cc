#include "tests/parallel/communicator_suite.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "tests/parallel/communicator_elements.h"

namespace transxssm {

thread_local Stream* device_stream = nullptr;
thread_local bool exact_sums = true;

namespace {

constexpr int64_t kChunkBytes = int64_t{256} << 10;

// Compares x, which begins at element `first` of the reduction: all of a short one, and of a long one a
// sample, so that the check costs less than the work.
template <class T>
void expect_reduced(std::span<const T> x, int64_t first, int n, ReduceOp op) {
  const int64_t count = static_cast<int64_t>(x.size());
  const int64_t step = count <= 2000 ? 1 : 37;
  const T bound = exact_sums || op == ReduceOp::max
                      ? T{0}
                      : std::ldexp(std::numeric_limits<T>::epsilon(), 22) * static_cast<T>(n);
  int64_t wrong = 0;
  const auto check = [&](int64_t i) {
    wrong += !(std::abs(x[static_cast<size_t>(i)] - rank_ordered<T>(n, first + i, op)) <= bound);
  };
  for (int64_t i = 0; i < count; i += step) check(i);
  if (count > 0) check(count - 1);
  EXPECT_EQ(wrong, 0) << "of " << count << " elements on " << n << " ranks";
}

template <class T>
std::vector<int64_t> sizes(int n) {
  const int64_t chunk = kChunkBytes / static_cast<int64_t>(sizeof(T));
  return {0, 1, n - 1, 7, 1001, n * chunk, n * (chunk + 3) + 1};
}

template <class T>
void all_reduce_of(Communicator& world) {
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
    for (const int64_t count : sizes<T>(world.size())) {
      std::vector<T> x = elements<T>(world.rank(), count);
      world.all_reduce(Placed(x), op);
      expect_reduced<T>(x, 0, world.size(), op);
    }
  }
  if (world.size() > 2) {  // the order is visible in these values
    int64_t differ = 0;
    for (int64_t i = 0; i < 1000; ++i) {
      T backwards = element<T>(world.size() - 1, i);
      for (int r = world.size() - 2; r >= 0; --r) backwards += element<T>(r, i);
      differ += backwards != rank_ordered<T>(world.size(), i, ReduceOp::sum);
    }
    EXPECT_GT(differ, 50);
  }
}

void all_reduce(Communicator& world) {
  all_reduce_of<float>(world);
  all_reduce_of<double>(world);
}

// Sums of bf16 are formed in f32 and rounded once: 256 + n halves is exact in f32, and lost one by one in
// bf16.
void bf16_is_summed_in_f32(Communicator& world) {
  const int n = world.size();
  std::vector<BFloat16> x(1000, to_bfloat16(world.rank() == 0 ? 256.0F : 0.5F));
  const float expected = to_float(to_bfloat16(256.0F + 0.5F * static_cast<float>(n - 1)));
  world.all_reduce(Placed(x));
  for (const BFloat16 v : x) ASSERT_EQ(to_float(v), expected);
  std::vector<BFloat16> pieces(static_cast<size_t>(n) * 10, to_bfloat16(world.rank() == 0 ? 256.0F : 0.5F));
  std::vector<BFloat16> piece(10);
  world.reduce_scatter(Placed(pieces), Placed(piece));
  for (const BFloat16 v : piece) ASSERT_EQ(to_float(v), expected);
}

void maximum_keeps_nan(Communicator& world) {
  for (int bad = 0; bad < world.size(); ++bad) {
    std::vector<float> x{1.0F, world.rank() == bad ? std::numeric_limits<float>::quiet_NaN() : 2.0F};
    world.all_reduce(Placed(x), ReduceOp::max);
    EXPECT_EQ(x[0], 1.0F);
    EXPECT_TRUE(std::isnan(x[1]));
  }
}

template <class T>
void reduce_scatter_of(Communicator& world) {
  const int n = world.size();
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{333}, kChunkBytes / 4 + 5}) {
    std::vector<T> input = elements<T>(world.rank(), n * count);
    std::vector<T> output(static_cast<size_t>(count));
    world.reduce_scatter(Placed(input), Placed(output));
    expect_reduced<T>(output, world.rank() * count, n, ReduceOp::sum);
    world.reduce_scatter(Placed(input), Placed(output), ReduceOp::max);
    expect_reduced<T>(output, world.rank() * count, n, ReduceOp::max);
    world.reduce_scatter(Placed(input), Placed(output));
    EXPECT_EQ(input, elements<T>(world.rank(), n * count));  // read only
    if (count == 0) continue;
    {
      const Placed x(input);
      world.reduce_scatter(x, x.slice(world.rank() * count, count));
    }
    EXPECT_TRUE(std::equal(output.begin(), output.end(), input.begin() + world.rank() * count)) << "in place";
  }
}

void sums_under_way(Communicator& world) {
  const int64_t count = 3 * world.size() + 1;
  std::vector<float> first = elements<float>(world.rank(), count), between = first;
  std::vector<double> second = elements<double>(world.rank(), count);
  const int64_t sent = world.traffic().bytes_sent;
  {
    const Placed a(first), b(second), c(between);
    Request one = world.start_all_reduce(a), two = world.start_all_reduce(b);
    world.all_reduce(c);
    one.wait();
    two.wait();
    EXPECT_FALSE(one.pending() || two.pending());
    one.wait();  // nothing is left to do
  }
  const int64_t all_sent = world.traffic().bytes_sent - sent;
  expect_reduced<float>(first, 0, world.size(), ReduceOp::sum);
  expect_reduced<double>(second, 0, world.size(), ReduceOp::sum);
  EXPECT_EQ(between, first);
  {
    const Placed a(first), b(second), c(between);
    for (const Tensor& x : {Tensor(a), Tensor(b), Tensor(c)}) world.all_reduce(x);
  }
  EXPECT_EQ(world.traffic().bytes_sent - sent, 2 * all_sent);  // as those that are not started early
}

void reduce_scatter(Communicator& world) {
  reduce_scatter_of<float>(world);
  reduce_scatter_of<double>(world);
}

template <class T>
void all_gather_of(Communicator& world) {
  const int n = world.size();
  for (const int64_t count : {0, 1, 13, 20'001}) {
    const auto byte = [](int r, int64_t i) { return static_cast<uint8_t>(r * 31 + i * 7); };
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    std::vector<T> input(static_cast<size_t>(count));
    std::vector<T> output(static_cast<size_t>(n * count));
    for (int64_t i = 0; i < bytes; ++i) reinterpret_cast<uint8_t*>(input.data())[i] = byte(world.rank(), i);
    world.all_gather(Placed(input), Placed(output));
    int64_t wrong = 0;
    const auto check = [&] {
      for (int64_t i = 0; i < n * bytes; ++i) {
        wrong += reinterpret_cast<uint8_t*>(output.data())[i] != byte(static_cast<int>(i / bytes), i % bytes);
      }
    };
    check();
    if (count == 0) continue;
    std::memset(output.data(), 0, static_cast<size_t>(n * bytes));
    std::memcpy(output.data() + world.rank() * count, input.data(), static_cast<size_t>(bytes));
    {
      const Placed x(output);
      world.all_gather(x.slice(world.rank() * count, count), x);
    }
    check();
    EXPECT_EQ(wrong, 0);
  }
}

void all_gather(Communicator& world) {
  all_gather_of<uint8_t>(world);
  all_gather_of<BFloat16>(world);
  all_gather_of<int64_t>(world);
}

void broadcast(Communicator& world) {
  for (int root = 0; root < world.size(); ++root) {
    for (const int64_t count : {0, 1, 99'999}) {
      std::vector<float> x = elements<float>(world.rank(), count);
      world.broadcast(Placed(x), root);
      EXPECT_EQ(x, elements<float>(root, count));
    }
  }
}

void barrier(Communicator& world) {
  world.barrier();
  for (int late = 0; late < world.size(); ++late) {
    const auto start = std::chrono::steady_clock::now();
    world.barrier();  // all start within this
    if (world.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    world.barrier();
    EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(15));
  }
}

void split(Communicator& world) {
  const int n = world.size();
  const int me = world.rank();
  // Odd and even ranks, backwards; rank 0 joins none.
  const auto group = world.split(me == 0 ? -1 : me % 2, -me);
  if (me == 0) {
    EXPECT_EQ(group, nullptr);
  } else {
    std::vector<int> members;
    for (int r = n - 1; r > 0; --r) {
      if (r % 2 == me % 2) members.push_back(r);
    }
    ASSERT_EQ(group->size(), static_cast<int>(members.size()));
    EXPECT_EQ(members[static_cast<size_t>(group->rank())], me);
    for (int r = 0; r < group->size(); ++r) EXPECT_EQ(group->world_rank(r), members[static_cast<size_t>(r)]);
    std::vector<double> x{static_cast<double>(me)};
    group->all_reduce(Placed(x));
    double sum = 0;
    for (int r : members) sum += r;
    EXPECT_EQ(x[0], sum);
    EXPECT_EQ(world.traffic().messages, 0);  // the group counts its own; making it counts for nobody

    const auto grandchild = group->split(0, group->rank());
    EXPECT_EQ(grandchild->world_rank(grandchild->rank()), me);
  }
  world.barrier();
}

// Messages of a pair arrive in the order sent, whatever their sizes, and never mix with collectives.
void order(Communicator& world) {
  const int n = world.size();
  if (n == 1) return;
  const int next = (world.rank() + 1) % n;
  const int previous = (world.rank() + n - 1) % n;
  Messages messages(world.rank());
  messages.send(world, next);
  std::vector<float> sum{1.0F};
  world.all_reduce(Placed(sum));
  EXPECT_EQ(sum[0], static_cast<float>(n));
  messages.receive(world, previous);
  messages.wait();
  messages.expect_received(previous);
}

// The same along a chain, each directed edge a communicator of its own.
void edges(Communicator& world) {
  const int me = world.rank();
  std::unique_ptr<Communicator> to_next, from_previous;
  for (int from = 0; from + 1 < world.size(); ++from) {
    auto edge = world.split(me == from || me == from + 1 ? 0 : -1, me);
    if (edge != nullptr) (me == from ? to_next : from_previous) = std::move(edge);
  }
  Messages messages(me);
  if (from_previous != nullptr) messages.receive(*from_previous, 0);
  if (to_next != nullptr) messages.send(*to_next, 1);
  messages.wait();
  if (from_previous != nullptr) messages.expect_received(me - 1);
}

void traffic(Communicator& world) {
  const int64_t n = world.size();
  std::vector<double> x(1200);
  std::vector<double> gathered(static_cast<size_t>(n * 1200));
  const auto sent_by_all = [&](auto&& run) {
    const int64_t before = world.traffic().bytes_sent;
    run();
    std::vector<double> total{static_cast<double>(world.traffic().bytes_sent - before)};
    world.all_reduce(Placed(total));
    return static_cast<int64_t>(total[0]);
  };
  EXPECT_EQ(sent_by_all([&] { world.all_reduce(Placed(x)); }), 2 * (n - 1) * 9600);
  EXPECT_EQ(sent_by_all([&] { world.reduce_scatter(Placed(gathered), Placed(x)); }), n * (n - 1) * 9600);
  EXPECT_EQ(sent_by_all([&] { world.all_gather(Placed(x), Placed(gathered)); }), n * (n - 1) * 9600);
  EXPECT_EQ(sent_by_all([&] { world.broadcast(Placed(x), 0); }), (n - 1) * 9600);
  EXPECT_EQ(sent_by_all([&] { world.barrier(); }), 0);
}

template <class Fn>
std::string message_of(Fn&& fn) {
  try {
    fn();
  } catch (const CommunicationError& error) {
    return error.what();
  }
  return "";
}

void time_out_names_the_peers(Communicator& world) {
  const int n = world.size();
  if (n == 1) return;
  const auto group = world.split(0, -world.rank());  // backwards: world ranks in the message, not the group's
  group->set_name("stuck");
  group->set_timeout(std::chrono::milliseconds(30));
  std::vector<float> x(8);
  if (world.rank() == 0) {
    const std::string message = message_of([&] {
      const Placed placed(x);
      group->receive(placed, 0).wait();
    });
    EXPECT_NE(message.find("Rank 0 in receive #0 of 'stuck'"), std::string::npos) << message;
    EXPECT_NE(message.find("for rank " + std::to_string(n - 1) + ","), std::string::npos) << message;
  }
  world.set_timeout(std::chrono::seconds(300));
  world.barrier();
}

void sizes_must_agree(Communicator& world) {
  if (world.size() == 1) return;
  std::vector<float> x(8);
  if (world.rank() == 0) {
    // Whether the sender learns of it is the transport's affair.
    const Placed placed(x);
    message_of([&] { world.send(placed.slice(0, 2), 1).wait(); });
  } else if (world.rank() == 1) {
    const std::string message = message_of([&] {
      const Placed placed(x);
      world.receive(placed, 0).wait();
    });
    EXPECT_NE(message.find("a message of 8 bytes met a receive of 32 bytes"), std::string::npos) << message;
  }
  world.barrier();
}

void checks_find_unlike_collectives(Communicator& world) {
  if (world.size() == 1) return;
  world.set_collective_checks(true);
  std::vector<float> x(static_cast<size_t>(4 * world.size()));
  world.all_reduce(Placed(x));
  const std::string message = message_of([&] {
    if (world.rank() == 1) {
      const Placed placed(x);
      world.all_gather(placed.slice(0, 4), placed);
    } else {
      world.all_reduce(Placed(x));
    }
  });
  EXPECT_NE(message.find("rank 1 runs all_gather #1 of 16 bytes"), std::string::npos) << message;
  EXPECT_NE(message.find("all_reduce #1 of"), std::string::npos) << message;
  world.set_collective_checks(false);
  world.barrier();
}

constexpr CommunicatorCase kCases[] = {
    {"all_reduce", all_reduce},
    {"bf16_is_summed_in_f32", bf16_is_summed_in_f32, true},
    {"maximum_keeps_nan", maximum_keeps_nan},
    {"sums_under_way", sums_under_way},
    {"reduce_scatter", reduce_scatter},
    {"all_gather", all_gather},
    {"broadcast", broadcast},
    {"barrier", barrier},
    {"split", split},
    {"order", order, true},
    {"edges", edges},
    {"traffic", traffic},
    {"time_out_names_the_peers", time_out_names_the_peers, true},
    {"sizes_must_agree", sizes_must_agree, true},
    {"checks_find_unlike_collectives", checks_find_unlike_collectives},
};

}  // namespace

PlaceOnDevice::PlaceOnDevice(Stream& stream, bool rank_ordered) {
  device_stream = &stream;
  exact_sums = rank_ordered;
}

PlaceOnDevice::~PlaceOnDevice() {
  device_stream = nullptr;
  exact_sums = true;
}

std::span<const CommunicatorCase> communicator_cases() {
  return kCases;
}

}  // namespace transxssm
