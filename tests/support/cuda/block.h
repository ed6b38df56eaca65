// One block of the emulated device: its lanes, who runs next, and what they wait for. Built without the
// thread sanitizer, which must see the kernel's own accesses and no others: hence no containers that other
// files share.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <string>

#include "tests/support/cuda/emulator.h"
#include "tests/support/cuda/lane.h"
#include "tests/support/cuda/sanitizer.h"

namespace transxssm::cuda::emulated {

inline constexpr int kWarpLanes = 32;
inline constexpr int kMaxLanes = 1024;
inline constexpr size_t kMaxSharedBytes = 227 * 1024;  // of a block on compute capability 9.0

struct GridShape {
  std::string name;  // of the kernel
  dim3 grid, block;
  size_t shared_bytes = 0;
};

struct Lane {
  enum class State : uint8_t { ready, waiting, done };
  void* context = nullptr;  // where it goes on
  SanitizerContext sanitizer;
  State state = State::ready;
  int number = 0;
  uint3 index{};
  Lane* next = nullptr;  // in the queue of lanes that can go on
  // What it waits for, and at which line.
  const char* barrier = nullptr;
  Where where;
  // Copies on their way, in order of issue, and where each committed group of them ends.
  std::array<PendingCopy, 128> copies;
  std::array<uint64_t, 32> group_ends;
  uint64_t issued = 0, landed = 0, groups = 0;
};

// Lanes wait here until enough have come. Two addresses in turn stand for it to the thread sanitizer, so that
// a lane still leaving one phase does not see what others do before the next.
struct Meeting {
  int arrived = 0, expected = 0;
  const char* barrier = nullptr;
  Where where;
  std::array<Lane*, kMaxLanes> lanes;
  unsigned phase = 0;
  char addresses[2] = {};
};

class Block {
 public:
  Block();
  ~Block();
  // Runs one block to its end; throws EmulationError. Every lane calls `kernel`.
  void run(const GridShape& shape, uint3 block, void* shared, const Settings& settings,
           const std::function<void()>& kernel);

  // From a lane:
  Lane& lane() { return *current_; }
  const Settings& settings() const { return settings_; }
  const GridShape& shape() const { return *shape_; }
  char* shared() const { return shared_; }
  void wait_for_block(const Where& where);
  void wait_for_name(int id, int threads, const Where& where);
  // All lanes of the warp come with the same operation; the last one performs it on the arguments of all.
  using Perform = void (*)(void* const* arguments);
  void wait_for_warp(const char* operation, const Where& where, void* argument, Perform perform,
                     bool orders_memory);
  // Throws, naming kernel, block, lane and line.
  [[noreturn]] void fail(const std::string& message, const Where& where) const;

 private:
  struct Warp {
    Meeting meeting;
    std::array<void*, kWarpLanes> arguments;
  };
  static void enter_lane(Lane& lane);
  void start(int number);
  void resume(Lane& lane);
  void suspend(bool for_good);
  void make_ready(Lane& lane);
  Lane* next_lane();
  // The calling lane comes; true for the last.
  bool arrive_at(Meeting& meeting, const char* barrier, const Where& where, bool one_line,
                 bool orders_memory);
  void finish(Meeting& meeting, bool orders_memory);
  std::string who_waits() const;
  std::string place() const;

  std::unique_ptr<Lane[]> lanes_;
  std::unique_ptr<Warp[]> warps_;
  std::unique_ptr<Meeting[]> barriers_;  // 0: of the block
  char* stacks_ = nullptr;
  const GridShape* shape_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  Settings settings_;
  uint3 index_{};
  char* shared_ = nullptr;
  int num_lanes_ = 0, num_done_ = 0;
  Lane* current_ = nullptr;
  Lane *first_ready_ = nullptr, *last_ready_ = nullptr;
  void* host_context_ = nullptr;
  SanitizerContext host_;
  std::string error_;
  char end_ = 0;  // what lanes did before their end is ordered before what the host does after the grid

 public:
  void acquire_end() { acquire(&end_); }
};

// The block that runs.
Block& current_block();

}  // namespace transxssm::cuda::emulated
