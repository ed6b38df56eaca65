#include "tests/support/cuda/block.h"

#include <sys/mman.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <map>
#include <new>
#include <tuple>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace transxssm::cuda::emulated {

namespace {

using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

constexpr size_t kStackBytes = 64 * 1024;  // the lowest page of each is a guard
constexpr size_t kGuardBytes = 4096;

char* map_stacks(int lanes, bool guards) {
  const size_t bytes = static_cast<size_t>(lanes) * kStackBytes;
  void* stacks =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  for (int i = 0; guards && i < lanes; ++i)
    mprotect(static_cast<char*>(stacks) + static_cast<size_t>(i) * kStackBytes, kGuardBytes, PROT_NONE);
  return static_cast<char*>(stacks);
}

std::string text(const Where& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

bool same_line(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
         ")";
}

}  // namespace

Block::Block()
    : lanes_(new Lane[kMaxLanes]), warps_(new Warp[kMaxLanes / kWarpLanes]), barriers_(new Meeting[16]) {
  if (!wants_fresh_memory()) stacks_ = map_stacks(kMaxLanes, true);
}

Block::~Block() {
  if (stacks_) munmap(stacks_, kMaxLanes * kStackBytes);
}

void Block::run(const GridShape& shape, uint3 block, void* shared, const Settings& settings,
                const std::function<void()>& kernel) {
  shape_ = &shape, kernel_ = &kernel, settings_ = settings, index_ = block;
  shared_ = static_cast<char*>(shared);
  num_lanes_ = static_cast<int>(shape.block.x * shape.block.y * shape.block.z);
  num_done_ = 0;
  error_.clear();
  first_ready_ = last_ready_ = nullptr;
  gridDim = shape.grid, blockDim = shape.block, blockIdx = block;
  for (int i = 0; i < 16; ++i) barriers_[static_cast<size_t>(i)].arrived = 0;
  for (int i = 0; i < num_lanes_ / kWarpLanes; ++i) warps_[static_cast<size_t>(i)].meeting.arrived = 0;
  if (wants_fresh_memory()) stacks_ = map_stacks(num_lanes_, false);
  adopt_thread(host_);
  for (int i = 0; i < num_lanes_; ++i) start(i);
  while (num_done_ < num_lanes_ && error_.empty()) {
    Lane* lane = next_lane();
    if (!lane) {
      error_ = place() + ": the block can never go on: " + who_waits();
      break;
    }
    resume(*lane);
  }
  for (int i = 0; i < num_lanes_; ++i) end_context(lanes_[static_cast<size_t>(i)].sanitizer);
  if (wants_fresh_memory()) {
    munmap(stacks_, static_cast<size_t>(num_lanes_) * kStackBytes);
    stacks_ = nullptr;
  }
  current_ = nullptr;
  if (!error_.empty()) throw EmulationError(error_);
}

void Block::start(int number) {
  Lane& lane = lanes_[static_cast<size_t>(number)];
  char* stack = stacks_ + static_cast<size_t>(number) * kStackBytes + kGuardBytes;
  const size_t bytes = kStackBytes - kGuardBytes;
  begin_context(lane.sanitizer, stack, bytes);
  lane.context = make_fcontext(stack + bytes, bytes, [](transfer_t from) {
    auto* block_of_lane = static_cast<Block*>(from.data);
    block_of_lane->host_context_ = from.fctx;
    enter_lane(block_of_lane->lane());
  });
  lane.number = number;
  const unsigned n = static_cast<unsigned>(number);
  const dim3& size = shape_->block;
  lane.index = {n % size.x, n / size.x % size.y, n / (size.x * size.y)};
  lane.barrier = nullptr;
  lane.issued = lane.landed = lane.groups = 0;
  make_ready(lane);
}

void Block::enter_lane(Lane& lane) {
  Block& block = current_block();
  arrive(lane.sanitizer, block.host_);
  try {
    (*block.kernel_)();
  } catch (const std::exception& error) {
    block.error_ = error.what();
  }
  lane.state = Lane::State::done;
  ++block.num_done_;
  release(&block.end_);
  block.suspend(true);
}

void Block::resume(Lane& lane) {
  current_ = &lane;
  threadIdx = lane.index;
  leave(host_, lane.sanitizer, false);
  lane.context = jump_fcontext(lane.context, this).fctx;
  arrive(host_, lane.sanitizer);
}

void Block::suspend(bool for_good) {
  Lane& lane = *current_;
  leave(lane.sanitizer, host_, for_good);
  host_context_ = jump_fcontext(host_context_, nullptr).fctx;
  arrive(lane.sanitizer, host_);
}

void Block::make_ready(Lane& lane) {
  lane.state = Lane::State::ready;
  if (settings_.schedule != Schedule::fifo) return;
  lane.next = nullptr;
  (last_ready_ ? last_ready_->next : first_ready_) = &lane;
  last_ready_ = &lane;
}

Lane* Block::next_lane() {
  if (settings_.schedule == Schedule::fifo) {
    Lane* lane = first_ready_;
    if (lane && !(first_ready_ = lane->next)) last_ready_ = nullptr;
    return lane;
  }
  const bool reversed = settings_.schedule == Schedule::greedy_reversed;
  const auto first_ready = [&](int begin, int count) -> Lane* {
    for (int i = 0; i < count; ++i) {
      Lane& lane = lanes_[static_cast<size_t>(begin + (reversed ? count - 1 - i : i))];
      if (lane.state == Lane::State::ready) return &lane;
    }
    return nullptr;
  };
  if (current_)
    if (Lane* lane = first_ready(current_->number / kWarpLanes * kWarpLanes, kWarpLanes)) return lane;
  return first_ready(0, num_lanes_);
}

bool Block::arrive_at(Meeting& meeting, const char* barrier, const Where& where, bool one_line,
                      bool orders_memory) {
  if (meeting.arrived == 0) {
    meeting.barrier = barrier;
    meeting.where = where;
  } else if (one_line && (meeting.barrier != barrier || !same_line(meeting.where, where))) {
    fail(std::string(barrier) + " meets threads that wait at " + meeting.barrier + " of " +
             text(meeting.where),
         where);
  }
  if (orders_memory) release(&meeting.addresses[meeting.phase % 2]);
  meeting.lanes[static_cast<size_t>(meeting.arrived++)] = current_;
  return meeting.arrived == meeting.expected;
}

// After arriving: waits for the others; the last one lets all go on, itself in its turn.
void Block::finish(Meeting& meeting, bool orders_memory) {
  const int count = meeting.arrived;
  void* address = &meeting.addresses[meeting.phase % 2];
  if (count == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.phase;
    for (int i = 0; i < count; ++i) make_ready(*meeting.lanes[static_cast<size_t>(i)]);
  } else {
    current_->state = Lane::State::waiting;
    current_->barrier = meeting.barrier;
    current_->where = meeting.where;
  }
  suspend(false);
  if (orders_memory) acquire(address);
}

void Block::wait_for_block(const Where& where) {
  Meeting& meeting = barriers_[0];
  meeting.expected = num_lanes_;
  arrive_at(meeting, "sync_block", where, true, true);
  finish(meeting, true);
}

void Block::wait_for_name(int id, int threads, const Where& where) {
  if (id < 1 || id > 15) fail("sync_named takes a name from 1 to 15, not " + std::to_string(id), where);
  if (threads < kWarpLanes || threads > num_lanes_ || threads % kWarpLanes != 0)
    fail("sync_named of " + std::to_string(threads) + " threads in a block of " + std::to_string(num_lanes_),
         where);
  Meeting& meeting = barriers_[static_cast<size_t>(id)];
  if (meeting.arrived > 0 && meeting.expected != threads)
    fail("sync_named of " + std::to_string(threads) + " threads, where others wait for " +
             std::to_string(meeting.expected),
         where);
  meeting.expected = threads;
  arrive_at(meeting, "sync_named", where, false, true);
  finish(meeting, true);
}

void Block::wait_for_warp(const char* operation, const Where& where, void* argument, Perform perform,
                          bool orders_memory) {
  Warp& warp = warps_[static_cast<size_t>(current_->number / kWarpLanes)];
  warp.meeting.expected = kWarpLanes;
  warp.arguments[static_cast<size_t>(current_->number % kWarpLanes)] = argument;
  if (arrive_at(warp.meeting, operation, where, true, orders_memory) && perform)
    perform(warp.arguments.data());
  finish(warp.meeting, orders_memory);
}

std::string Block::who_waits() const {
  std::map<std::string, int> waiting;
  for (int i = 0; i < num_lanes_; ++i) {
    const Lane& lane = lanes_[static_cast<size_t>(i)];
    if (lane.state == Lane::State::waiting)
      ++waiting["wait at " + std::string(lane.barrier) + " of " + text(lane.where)];
    if (lane.state == Lane::State::done) ++waiting["have ended"];
  }
  std::string result;
  for (const auto& [what, count] : waiting)
    result += (result.empty() ? "" : ", ") + std::to_string(count) + " threads " + what;
  return result;
}

std::string Block::place() const {
  return "kernel " + shape_->name + ", block " + text(index_);
}

void Block::fail(const std::string& message, const Where& where) const {
  throw EmulationError(place() + ", thread " + text(current_->index) + ", " + text(where) + ": " + message);
}

}  // namespace transxssm::cuda::emulated
