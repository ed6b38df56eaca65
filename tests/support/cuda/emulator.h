// The emulated GPU: grids run on the calling thread, one at a time, block after block, each lane a fiber. How
// lanes take turns and when asynchronous copies land can be chosen: a kernel that lacks a barrier or a wait
// is right for some choices and wrong for others. README of tests/cuda.
#pragma once

#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>

namespace transxssm::cuda::emulated {

enum class Schedule : uint8_t {
  fifo,            // every lane goes on in turn
  greedy,          // one warp as far as it can go, then the first that can go on
  greedy_reversed  // the same from the last warp and lane
};
enum class Copies : uint8_t { early, late };          // land at their issue, or when they are waited for
enum class Queues : uint8_t { immediate, deferred };  // work runs when queued, or when it is waited for

struct Settings {
  Schedule schedule = Schedule::fifo;
  Copies copies = Copies::early;
  Queues queues = Queues::immediate;
};
// For grids and queued work from now on, of the whole process.
void use_settings(const Settings& settings);
Settings settings();
std::string to_string(const Settings& settings);  // "greedy_late"

// The GPUs that the process sees, alike but for their numbers, and whether there is a driver.
struct Machine {
  int devices = 1;
  int compute_major = 9;
  bool driver = true;
};
void use_machine(const Machine& machine);

// Names of the kernels that ran in this process, or since the last forget, without template arguments.
std::set<std::string> launched_kernels();
void forget_launched_kernels();

// What a kernel did wrong: names the kernel, the block, and the lines of the kernel it stands at.
class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace transxssm::cuda::emulated
