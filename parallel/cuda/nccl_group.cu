#include "parallel/cuda/nccl_group.h"

#include <algorithm>
#include <exception>

#include "runtime/error.h"

namespace transxssm::cuda {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kLook(100);        // between two looks of the watchdog
constexpr milliseconds kPoll(1);          // between two questions whether a call is under way
constexpr std::chrono::seconds kEnd(10);  // for the other ranks to end a group, too

double seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

std::string text_of(ncclResult_t result, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  const std::string more = detail != nullptr && *detail != '\0' ? fmt::format(" ({})", detail) : "";
  return fmt::format("NCCL reports {}{}; set NCCL_DEBUG=WARN to see more", ncclGetErrorString(result), more);
}

}  // namespace

NcclWatchdog::NcclWatchdog(int device) : thread_([this, device] { watch(device); }) {}

NcclWatchdog::~NcclWatchdog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopping_.notify_one();
  thread_.join();
}

void NcclWatchdog::add(NcclGroup* group) {
  std::lock_guard lock(mutex_);
  groups_.push_back(group);
}

void NcclWatchdog::remove(NcclGroup* group) {
  std::lock_guard lock(mutex_);
  std::erase(groups_, group);
}

void NcclWatchdog::fail(const std::string& message) {
  std::lock_guard lock(mutex_);
  if (!failed_) message_ = message;
  failed_ = true;
  abort_all();
}

void NcclWatchdog::check() {
  if (!failed_) return;
  std::lock_guard lock(mutex_);
  throw CommunicationError("{}", message_);
}

void NcclWatchdog::abort_all() {
  for (NcclGroup* group : groups_) group->abort();
}

void NcclWatchdog::watch(int device) {
  use_device(device);
  std::unique_lock lock(mutex_);
  while (!stopping_.wait_for(lock, kLook, [this] { return stop_; })) {
    for (size_t i = 0; i < groups_.size() && !failed_; ++i) {
      const std::string fault = groups_[i]->fault();
      if (fault.empty()) continue;
      message_ = fault;
      failed_ = true;
      abort_all();
    }
  }
}

NcclGroup::NcclGroup(std::shared_ptr<NcclWatchdog> watchdog, const ncclUniqueId& id, int rank, int size,
                     std::chrono::nanoseconds limit)
    : watchdog_(std::move(watchdog)) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const std::string fault = settle(ncclCommInitRankConfig(&comm_, size, id, rank, &config), limit);
  if (!fault.empty()) {
    abort();
    throw CommunicationError("a group of {} ranks for the GPU cannot be made: {}", size, fault);
  }
  watchdog_->add(this);
}

// Ends the group together with its other ranks, unless something is wrong: then they may never come.
NcclGroup::~NcclGroup() {
  watchdog_->remove(this);
  std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return;
  if (std::uncaught_exceptions() == 0 && settle(ncclCommFinalize(comm_), kEnd).empty()) {
    ncclCommDestroy(comm_);
  } else {
    ncclCommAbort(comm_);
  }
}

void NcclGroup::run(const std::string& what, std::chrono::nanoseconds limit, cudaStream_t queue,
                    const std::function<ncclResult_t(ncclComm_t)>& start) {
  watchdog_->check();
  std::string fault;
  {
    std::lock_guard lock(mutex_);
    if (comm_ != nullptr) {
      fault = settle(start(comm_), limit);
      latest_.record(queue);
      under_way_ = true;
      what_ = what;
      deadline_ = Clock::now() + limit;
    }
  }
  if (!fault.empty()) watchdog_->fail(fmt::format("{}: {}", what, fault));
  watchdog_->check();
}

std::string NcclGroup::settle(ncclResult_t started, std::chrono::nanoseconds limit) {
  const Clock::time_point deadline = Clock::now() + limit;
  ncclResult_t state = started;
  while (state == ncclInProgress) {
    if (Clock::now() > deadline)
      return fmt::format("waited {:.1f} s for its other ranks, which failed, hang or run something else",
                         seconds(limit));
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) state = asked;
    if (state == ncclInProgress) std::this_thread::sleep_for(kPoll);
  }
  return state == ncclSuccess ? "" : text_of(state, comm_);
}

std::string NcclGroup::fault() {
  std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return "";
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
  if (asked != ncclSuccess) state = asked;
  if (state != ncclSuccess && state != ncclInProgress)
    return fmt::format("{}: {}", what_, text_of(state, comm_));
  if (!under_way_) return "";
  try {
    under_way_ = !latest_.reached();
  } catch (const Error& error) {
    return fmt::format("{}: {}", what_, error.what());
  }
  if (under_way_ && Clock::now() > deadline_)
    return fmt::format(
        "{} is not done in time: another rank failed, hangs or runs something else: look at its log", what_);
  return "";
}

void NcclGroup::abort() {
  std::lock_guard lock(mutex_);
  if (comm_ != nullptr) ncclCommAbort(comm_);
  comm_ = nullptr;
}

}  // namespace transxssm::cuda
