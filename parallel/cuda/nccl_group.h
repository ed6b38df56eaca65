// An NCCL communicator that cannot hang unseen: its calls do not block, a watchdog looks at it, and where one
// group of a process fails all are aborted, so that the host's waits for the device end. Included by .cu
// files alone.
#pragma once

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/cuda/device.h"

namespace transxssm::cuda {

class NcclGroup;

// Of one process: looks at every group some times a second.
class NcclWatchdog {
 public:
  explicit NcclWatchdog(int device);
  ~NcclWatchdog();
  void add(NcclGroup* group);
  void remove(NcclGroup* group);
  // Keeps the first message and aborts every group.
  void fail(const std::string& message);
  // Throws CommunicationError with that message.
  void check();

 private:
  void watch(int device);
  void abort_all();  // with mutex_

  std::mutex mutex_;
  std::vector<NcclGroup*> groups_;
  std::string message_;
  std::atomic<bool> failed_{false};
  bool stop_ = false;
  std::condition_variable stopping_;
  std::thread thread_;  // last: it uses the others
};

class NcclGroup {
 public:
  // Collective over the group. CommunicationError where it does not come about within the limit.
  NcclGroup(std::shared_ptr<NcclWatchdog> watchdog, const ncclUniqueId& id, int rank, int size,
            std::chrono::nanoseconds limit);
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;

  // Queues what `start` starts on `queue`. `what` names it in messages, such as "Rank 1 in send of 'tp'"; not
  // done after `limit` counts as a failure. CommunicationError where this group or another has failed.
  void run(const std::string& what, std::chrono::nanoseconds limit, cudaStream_t queue,
           const std::function<ncclResult_t(ncclComm_t)>& start);

  // Of the watchdog: what is wrong, or "".
  std::string fault();
  void abort();

 private:
  // Waits until a call that was started is under way; what is wrong, or "". With mutex_.
  std::string settle(ncclResult_t started, std::chrono::nanoseconds limit);

  std::shared_ptr<NcclWatchdog> watchdog_;
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
  // The latest operation: where it is done, all are.
  EventHandle latest_;
  bool under_way_ = false;
  std::string what_;
  std::chrono::steady_clock::time_point deadline_;
};

}  // namespace transxssm::cuda
