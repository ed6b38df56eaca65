#include "tests/support/cuda/emulator.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "tests/support/cuda/block.h"
#include "tests/support/cuda/queue.h"

namespace transxssm::cuda::emulated {

namespace {

struct Emulator {
  std::mutex mutex;
  Settings settings;
  std::set<std::string> launched;
  std::set<std::string> shapes;  // lines of EMULATED_LAUNCHES
};

Emulator& emulator() {
  static Emulator instance;
  return instance;
}

// Appends "kernel threads shared_bytes" to the file that EMULATED_LAUNCHES names, once each, for
// kernels/cuda/resources.py. With the mutex.
void note_shape(const std::string& kernel, const dim3& block, size_t shared_bytes) {
  static const char* const file = std::getenv("EMULATED_LAUNCHES");
  if (file == nullptr) return;
  const std::string line =
      kernel + " " + std::to_string(block.x * block.y * block.z) + " " + std::to_string(shared_bytes) + "\n";
  if (emulator().shapes.insert(line).second) std::ofstream(file, std::ios::app) << line;
}

// One grid runs at a time, whichever threads launch.
std::mutex& grid_mutex() {
  static std::mutex mutex;
  return mutex;
}

// Shared memory as a block finds it: of exactly the size asked for, every float a NaN.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes) {
    if (!wants_fresh_memory()) memory_ = allocate();
  }
  ~SharedMemory() { release_memory(); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  void* renew() {
    if (wants_fresh_memory()) {
      release_memory();
      memory_ = allocate();
    }
    std::memset(memory_, 0xff, bytes_);
    return memory_;
  }

 private:
  void* allocate() const {
    void* memory = nullptr;
    if (wants_fresh_memory()) {
      memory = mmap(nullptr, bytes_ + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
    } else if (posix_memalign(&memory, 128, bytes_ + (bytes_ == 0)) != 0) {
      throw std::bad_alloc();
    }
    return memory;
  }
  void release_memory() {
    if (!memory_) return;
    if (wants_fresh_memory())
      munmap(memory_, bytes_ + 1);
    else
      std::free(memory_);
    memory_ = nullptr;
  }
  size_t bytes_;
  void* memory_ = nullptr;
};

void run_grid(const GridShape& shape, const std::function<void()>& kernel) {
  const std::lock_guard lock(grid_mutex());
  const Settings chosen = settings();
  SharedMemory shared(shape.shared_bytes);
  Block& block = current_block();
  const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t n = chosen.schedule == Schedule::greedy_reversed ? blocks - 1 - i : i;
    const uint3 index = {static_cast<unsigned>(n % shape.grid.x),
                         static_cast<unsigned>(n / shape.grid.x % shape.grid.y),
                         static_cast<unsigned>(n / (uint64_t{shape.grid.x} * shape.grid.y))};
    block.run(shape, index, shared.renew(), chosen, kernel);
  }
  block.acquire_end();
}

// "kernel<float, 4>" or "folder::kernel" -> "kernel"
std::string plain_name(const std::string& name) {
  const std::string stem = name.substr(0, name.find('<'));
  const size_t begin = stem.find_last_of(": (&");
  return begin == std::string::npos ? stem : stem.substr(begin + 1);
}

bool fits(const GridShape& shape) {
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  return shape.grid.x > 0 && shape.grid.y > 0 && shape.grid.z > 0 && shape.grid.x < (1u << 31) &&
         shape.grid.y < (1u << 16) && shape.grid.z < (1u << 16) && threads > 0 && threads <= kMaxLanes &&
         shape.block.z <= 64 && threads % kWarpLanes == 0 && shape.shared_bytes <= kMaxSharedBytes;
}

}  // namespace

Block& current_block() {
  static Block block;
  return block;
}

void use_settings(const Settings& settings) {
  const std::lock_guard lock(emulator().mutex);
  emulator().settings = settings;
}

Settings settings() {
  const std::lock_guard lock(emulator().mutex);
  return emulator().settings;
}

std::string to_string(const Settings& settings) {
  std::string result = settings.schedule == Schedule::fifo     ? "fifo"
                       : settings.schedule == Schedule::greedy ? "greedy"
                                                               : "greedy_reversed";
  result += settings.copies == Copies::early ? "_early" : "_late";
  if (settings.queues == Queues::deferred) result += "_deferred";
  return result;
}

std::set<std::string> launched_kernels() {
  const std::lock_guard lock(emulator().mutex);
  return emulator().launched;
}

void forget_launched_kernels() {
  const std::lock_guard lock(emulator().mutex);
  emulator().launched.clear();
}

cudaError_t launch(std::string name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t queue,
                   std::function<void()> kernel) {
  GridShape shape{std::move(name), grid, block, shared_bytes};
  if (!fits(shape)) return cudaErrorInvalidConfiguration;
  {
    const std::lock_guard lock(emulator().mutex);
    emulator().launched.insert(plain_name(shape.name));
    note_shape(plain_name(shape.name), block, shared_bytes);
  }
  return enqueue(queue, [shape = std::move(shape), kernel = std::move(kernel)] { run_grid(shape, kernel); });
}

void* shared_memory(size_t bytes, const Where& where) {
  const Block& block = current_block();
  if (bytes > block.shape().shared_bytes)
    block.fail("uses " + std::to_string(bytes) + " bytes of shared memory; the launch gave it " +
                   std::to_string(block.shape().shared_bytes),
               where);
  return block.shared();
}

void sync_block(const Where& where) {
  current_block().wait_for_block(where);
}

void sync_named(int id, int threads, const Where& where) {
  current_block().wait_for_name(id, threads, where);
}

bool postpone(const PendingCopy& copy) {
  Block& block = current_block();
  if (block.settings().copies == Copies::early) return false;
  Lane& lane = block.lane();
  if (lane.issued - lane.landed == lane.copies.size())
    block.fail("more than " + std::to_string(lane.copies.size()) + " copies of one thread on their way",
               Where::current());
  lane.copies[lane.issued++ % lane.copies.size()] = copy;
  return true;
}

void commit_copies() {
  Lane& lane = current_block().lane();
  lane.group_ends[lane.groups++ % lane.group_ends.size()] = lane.issued;
}

bool next_due_copy(int open, PendingCopy& copy) {
  Lane& lane = current_block().lane();
  const auto kept = static_cast<uint64_t>(open);
  if (lane.groups <= kept ||
      lane.landed >= lane.group_ends[(lane.groups - kept - 1) % lane.group_ends.size()])
    return false;
  copy = lane.copies[lane.landed++ % lane.copies.size()];
  return true;
}

void misaligned(const void* p, const Where& where) {
  current_block().fail("access to 16 bytes at an address " +
                           std::to_string(reinterpret_cast<uintptr_t>(p) % 16) + " past a multiple of 16",
                       where);
}

void require_shared(const void* p, const Where& where) {
  require_aligned(p, where);
  const Block& block = current_block();
  const char* byte = static_cast<const char*>(p);
  if (byte < block.shared() || byte + 16 > block.shared() + block.shape().shared_bytes)
    block.fail("an address that must be in shared memory is not", where);
}

}  // namespace transxssm::cuda::emulated
