// NVIDIA GPUs behind runtime/device.h.
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>

#include "runtime/cuda/device.h"
#include "runtime/cuda/register.h"
#include "runtime/device.h"
#include "runtime/error.h"

namespace transxssm::cuda {
namespace {

constexpr double kGiB = 1 << 30;

class CudaMark final : public DeviceMark {
 public:
  explicit CudaMark(cudaStream_t stream) : event_(true) { event_.record(stream); }
  double seconds_since(const DeviceMark& earlier) const override {
    return 1e-3 * event_.milliseconds_since(static_cast<const CudaMark&>(earlier).event_);
  }

 private:
  EventHandle event_;
};

// Destroyed once what was launched of it is done: CUDA sees to that.
class CudaGraph final : public DeviceGraph {
 public:
  explicit CudaGraph(cudaGraph_t recorded) {
    const cudaError_t status = cudaGraphInstantiate(&executable_, recorded, 0);
    cudaGraphDestroy(recorded);
    check(status, "cudaGraphInstantiate", __FILE__, __LINE__);
  }
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  void launch(cudaStream_t stream) const { TRANSXSSM_CUDA_CHECK(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

class CudaQueue final : public DeviceQueue {
 public:
  void copy(const void* from, void* to, int64_t bytes) override {
    TRANSXSSM_CUDA_CHECK(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_.get()));
  }
  void zero(void* memory, int64_t bytes) override {
    TRANSXSSM_CUDA_CHECK(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_.get()));
  }
  // The event may be recorded anew while an older wait is pending: a wait keeps the point it was given.
  void wait_for(const DeviceQueue& other) override {
    reached_.record(static_cast<cudaStream_t>(other.native()));
    reached_.block(stream_.get());
  }
  void synchronize() override { stream_.synchronize(); }
  std::unique_ptr<DeviceMark> mark() override { return std::make_unique<CudaMark>(stream_.get()); }
  // Of this thread alone: other ranks of the process go on as they like.
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) override {
    TRANSXSSM_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    cudaGraph_t recorded = nullptr;
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(stream_.get(), &recorded);
      if (recorded != nullptr) cudaGraphDestroy(recorded);
      cudaGetLastError();
      throw;
    }
    TRANSXSSM_CUDA_CHECK(cudaStreamEndCapture(stream_.get(), &recorded));
    return std::make_unique<CudaGraph>(recorded);
  }
  void launch(const DeviceGraph& graph) override {
    static_cast<const CudaGraph&>(graph).launch(stream_.get());
  }
  void* native() const override { return stream_.get(); }

 private:
  StreamHandle stream_;
  EventHandle reached_;
};

class CudaRuntime final : public DeviceRuntime {
 public:
  std::string describe(int index) override {
    const DeviceProperties device = device_properties(index);
    return fmt::format("{}, {:.1f} GiB, {} multiprocessors, compute capability {}.{}", device.name,
                       double(device.memory_bytes) / kGiB, device.multiprocessors, device.compute_major,
                       device.compute_minor);
  }

  int num_devices() override { return cuda::num_devices(); }

  int64_t free_bytes(int index) override {
    use_device(index);
    size_t free = 0, total = 0;
    TRANSXSSM_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
  }

  void* allocate(int index, int64_t bytes) override {
    use_device(index);
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw DeviceError(
          "device cuda:{}: {:.2f} GiB ({} bytes) are needed, but {:.2f} GiB are free; lower "
          "parallel.microbatch_size, use more ranks, or end what else runs on this GPU",
          index, double(bytes) / kGiB, bytes, double(free_bytes(index)) / kGiB);
    }
    check(status, "cudaMalloc", __FILE__, __LINE__);
    TRANSXSSM_CUDA_CHECK(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), nullptr));
    TRANSXSSM_CUDA_CHECK(cudaStreamSynchronize(nullptr));
    std::lock_guard lock(mutex_);
    allocations_.emplace(static_cast<const std::byte*>(memory), bytes);
    return memory;
  }

  void release(int, void* memory) noexcept override {
    {
      std::lock_guard lock(mutex_);
      allocations_.erase(static_cast<const std::byte*>(memory));
    }
    cudaFree(memory);
  }

  void* allocate_pinned(int64_t bytes) override {
    use_latest_device();
    void* memory = nullptr;
    const cudaError_t status = cudaMallocHost(&memory, static_cast<size_t>(bytes));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw DeviceError(
          "{:.2f} GiB of pinned host memory cannot be had; look at the limit of locked memory (ulimit -l) "
          "and at the memory this container is granted",
          double(bytes) / kGiB);
    }
    check(status, "cudaMallocHost", __FILE__, __LINE__);
    std::memset(memory, 0, static_cast<size_t>(bytes));
    return memory;
  }

  void release_pinned(void* memory) noexcept override { cudaFreeHost(memory); }

  bool owns(const void* memory) override {
    const auto* address = static_cast<const std::byte*>(memory);
    std::lock_guard lock(mutex_);
    auto after = allocations_.upper_bound(address);
    return after != allocations_.begin() && address < (--after)->first + after->second;
  }

  std::unique_ptr<DeviceQueue> make_queue(int index) override {
    use_device(index);
    return std::make_unique<CudaQueue>();
  }

 private:
  std::mutex mutex_;                                 // ranks may be threads
  std::map<const std::byte*, int64_t> allocations_;  // start and bytes
};

}  // namespace
}  // namespace transxssm::cuda

namespace transxssm {

void register_cuda() {
  static cuda::CudaRuntime runtime;
  use_device_runtime(&runtime);
}

}  // namespace transxssm
