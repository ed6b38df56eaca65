#include "tests/support/cuda/queue.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/cuda/emulator.h"

namespace {

using Clock = std::chrono::steady_clock;

// Work in order. Outlives its stream where an event still names it.
struct WorkQueue {
  std::recursive_mutex mutex;
  std::deque<std::function<void()>> work;
  uint64_t queued = 0, done = 0;
};

// What a stream was given while it captured, and whether something was that cannot be recorded.
struct Recording {
  std::vector<std::function<void()>> work;
  bool valid = true;
};

thread_local int captures = 0;  // of this thread
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string failure;

}  // namespace

struct CUstream_st {
  int device = transxssm::cuda::emulated::current_device();
  std::shared_ptr<WorkQueue> queue = std::make_shared<WorkQueue>();
  std::shared_ptr<Recording> recording;  // while it captures
};
struct CUevent_st {
  std::shared_ptr<WorkQueue> queue;  // null until recorded
  uint64_t point = 0;
  std::shared_ptr<Clock::time_point> reached = std::make_shared<Clock::time_point>();
  bool timing = true;
};

namespace transxssm::cuda::emulated {

namespace {

std::mutex streams_mutex;
std::set<CUstream_st*>& streams() {
  static std::set<CUstream_st*> all;
  return all;
}

CUstream_st& stream_of(cudaStream_t stream) {
  static CUstream_st* default_stream = [] {
    auto* made = new CUstream_st;  // of the whole process
    const std::lock_guard lock(streams_mutex);
    streams().insert(made);
    return made;
  }();
  return stream ? *stream : *default_stream;
}

// Runs what is queued up to a point. What fails is remembered and the rest runs all the same.
cudaError_t drain_until(WorkQueue& queue, uint64_t point) {
  const std::lock_guard lock(queue.mutex);
  bool failed = false;
  while (queue.done < point && !queue.work.empty()) {
    const std::function<void()> work = std::move(queue.work.front());
    queue.work.pop_front();
    ++queue.done;
    try {
      work();
    } catch (const std::exception& error) {
      failure = error.what();
      failed = true;
    }
  }
  return failed ? result(cudaErrorLaunchFailure) : cudaSuccess;
}

}  // namespace

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

cudaError_t refuse_to_record(cudaStream_t stream) {
  if (captures == 0) return cudaSuccess;
  const auto& recording = stream_of(stream).recording;
  if (!recording) return cudaSuccess;
  recording->valid = false;
  return result(cudaErrorStreamCaptureUnsupported);
}

cudaError_t refuse_while_recording() {
  return captures == 0 ? cudaSuccess : result(cudaErrorStreamCaptureUnsupported);
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  if (const auto& recording = stream_of(stream).recording) {
    recording->work.push_back(std::move(work));
    return cudaSuccess;
  }
  WorkQueue& queue = *stream_of(stream).queue;
  const std::lock_guard lock(queue.mutex);
  queue.work.push_back(std::move(work));
  ++queue.queued;
  return settings().queues == Queues::immediate ? drain_until(queue, queue.queued) : cudaSuccess;
}

cudaError_t drain(cudaStream_t stream) {
  if (const cudaError_t status = refuse_to_record(stream); status != cudaSuccess) return status;
  WorkQueue& queue = *stream_of(stream).queue;
  const std::lock_guard lock(queue.mutex);
  return drain_until(queue, queue.queued);
}

cudaError_t drain_all() {
  std::vector<std::shared_ptr<WorkQueue>> queues;  // other threads may destroy their streams meanwhile
  {
    const std::lock_guard lock(streams_mutex);
    for (const CUstream_st* stream : streams())
      if (stream->device == current_device()) queues.push_back(stream->queue);
  }
  cudaError_t status = cudaSuccess;
  for (const auto& queue : queues) {
    const std::lock_guard lock(queue->mutex);
    if (const cudaError_t failed = drain_until(*queue, queue->queued); failed != cudaSuccess) status = failed;
  }
  return status;
}

}  // namespace transxssm::cuda::emulated

using transxssm::cuda::emulated::drain;
using transxssm::cuda::emulated::drain_all;
using transxssm::cuda::emulated::enqueue;
using transxssm::cuda::emulated::refuse_to_record;
using transxssm::cuda::emulated::result;

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}
const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorLaunchFailure:
      return failure.c_str();
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorNotSupported:
      return "not supported by the emulated device";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return "another error of the emulated device";
  }
}
const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    default:
      return "cudaErrorUnknown";
  }
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  const std::lock_guard lock(transxssm::cuda::emulated::streams_mutex);
  transxssm::cuda::emulated::streams().insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* greatest) {
  *lowest = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t status = drain(stream);
  {
    const std::lock_guard lock(transxssm::cuda::emulated::streams_mutex);
    transxssm::cuda::emulated::streams().erase(stream);
  }
  delete stream;
  return status;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return drain(stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  WorkQueue& queue = *transxssm::cuda::emulated::stream_of(stream).queue;
  const std::lock_guard lock(queue.mutex);
  return queue.work.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize() {
  return drain_all();
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  return enqueue(stream, [=] { function(argument); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st;
  (*event)->timing = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
// Events between streams are not recorded here.
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t status = refuse_to_record(stream); status != cudaSuccess) return status;
  const auto queue = transxssm::cuda::emulated::stream_of(stream).queue;
  const std::lock_guard lock(queue->mutex);
  event->queue = queue;
  event->point = queue->queued + 1;
  event->reached = std::make_shared<Clock::time_point>();
  return enqueue(stream, [reached = event->reached] { *reached = Clock::now(); });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->queue ? transxssm::cuda::emulated::drain_until(*event->queue, event->point) : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (!event->queue) return cudaSuccess;
  const std::lock_guard lock(event->queue->mutex);
  return event->queue->done >= event->point ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (const cudaError_t status = refuse_to_record(stream); status != cudaSuccess) return status;
  if (!event->queue) return cudaSuccess;
  return enqueue(stream, [queue = event->queue, point = event->point] {
    transxssm::cuda::emulated::drain_until(*queue, point);
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!start->timing || !end->timing || !start->queue || !end->queue) return result(cudaErrorInvalidValue);
  *milliseconds = std::chrono::duration<float, std::milli>(*end->reached - *start->reached).count();
  return cudaSuccess;
}

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || stream->recording) return result(cudaErrorInvalidValue);
  stream->recording = std::make_shared<Recording>();
  ++captures;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const auto recording = std::exchange(stream->recording, nullptr);
  if (!recording) return result(cudaErrorInvalidValue);
  --captures;
  if (!recording->valid) return result(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{std::move(recording->work)};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const auto& work : graph->work)
    if (const cudaError_t status = enqueue(stream, work); status != cudaSuccess) return status;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
