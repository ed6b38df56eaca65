// The first argument of every operation. A CPU stream runs the operation inline on the threads of its rank
// and owns their scratch memory; a CUDA stream queues it.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/arena.h"
#include "runtime/sanitizers.h"

#ifdef TRANSXSSM_THREAD_SANITIZER
#include <thread>
#endif

namespace transxssm {

class Stream {
 public:
  // A CPU stream of `num_threads` threads. Make it on the thread that uses it: OpenMP (and with it oneDNN)
  // keeps its number of threads per calling thread.
  explicit Stream(int num_threads = 1);
  // A stream of `device`; on the CPU as above. `num_threads` serve what the host does beside a device.
  explicit Stream(Device device, int num_threads = 1);
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }
  int num_threads() const { return num_threads_; }
  int64_t scratch_bytes() const;  // high-water mark
  // Null on the CPU, where everything is done when a call returns.
  DeviceQueue* queue() const { return queue_.get(); }
  // Waits until all that was queued is done; throws DeviceError where some of it failed.
  void synchronize() const;

 private:
  friend class Scratch;
  Device device_;
  int num_threads_;
  std::unique_ptr<DeviceQueue> queue_;
  std::vector<Arena> blocks_;  // grows in the first step only; blocks_[i] serves the i-th open Scratch
  size_t open_ = 0;
};

// Bytes of one contiguous tensor to another of the same dtype and number of elements, in the stream's order.
// Either may lie on the stream's device or on the host; from pinned memory the host does not wait.
void transfer(Stream& stream, const Tensor& from, const Tensor& to);
// Sets every byte of a contiguous tensor on the stream's device to zero.
void zero(Stream& stream, const Tensor& tensor);

// Scratch memory of one operation, last in first out: a local variable. Once it is closed, the host must not
// touch it; on a device, what was queued before still may.
class Scratch {
 public:
  Scratch(Stream& stream, int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Carver carver() const { return carver_; }
  template <class T>
  T* data() const {  // all of it
    Carver carver = carver_;
    return carver.take(DTypeOf<T>::value, {bytes_ / int64_t{sizeof(T)}}).template data<T>();
  }

 private:
  Stream& stream_;
  int64_t bytes_;
  Carver carver_;
};

// Runs fn(thread, threads) on each of up to `threads` threads, this one among them, and waits for them. fn
// must not throw.
template <class Fn>
void on_team(int threads, Fn&& fn) {
#ifdef TRANSXSSM_THREAD_SANITIZER  // it does not see how OpenMP's threads wait for one another
  std::vector<std::jthread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&fn, t, threads] { fn(t, threads); });
  fn(0, threads);
#else
#pragma omp parallel num_threads(threads)
  fn(omp_get_thread_num(), omp_get_num_threads());
#endif
}

// Runs fn(begin, end) over contiguous ranges that cover [0, count), one a thread; ranges are multiples of
// `grain`. fn must not throw. Results must not depend on the cut: sum into fixed blocks, never per thread.
template <class Fn>
void parallel_ranges(const Stream& stream, int64_t count, int64_t grain, Fn&& fn) {
  const int64_t blocks = (count + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<int64_t>(stream.num_threads(), blocks));
  if (threads <= 1) {
    if (count > 0) fn(int64_t{0}, count);
    return;
  }
  on_team(threads, [&](int64_t t, int64_t n) {
    const int64_t begin = blocks * t / n * grain;
    const int64_t end = std::min(count, blocks * (t + 1) / n * grain);
    if (begin < end) fn(begin, end);
  });
}

// Runs fn(i, thread) for every i in [0, count), handed out one at a time: for items of unequal cost.
// thread < stream.num_threads() names the caller's private scratch. fn must not throw.
template <class Fn>
void parallel_items(const Stream& stream, int64_t count, Fn&& fn) {
  const int threads = static_cast<int>(std::min<int64_t>(stream.num_threads(), count));
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) fn(i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  on_team(threads, [&](int thread, int) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) fn(i, thread);
  });
}

}  // namespace transxssm
