#include "launch/worker.h"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <set>

#include "launch/failure_report.h"
#include "launch/signals.h"
#include "launch/warnings.h"
#include "parallel/deadline.h"
#include "parallel/device_transport.h"
#include "parallel/local.h"
#include "parallel/mpi_communicator.h"
#include "parallel/shared_segment.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

std::vector<int> cores_in(const cpu_set_t& set) {
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

// Cores' worth of time the control group of a container grants to all its processes; 0: no limit.
int granted_cores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period && period > 0 ? std::max(1, static_cast<int>(quota / period)) : 0;
}

int number_or(const char* text, int otherwise) {
  return text != nullptr && *text != '\0' ? std::atoi(text) : otherwise;
}

// Where a rank runs.
struct Seat {
  uint64_t number;  // of its host
  std::string host;
  cpu_set_t cores;  // that it may run on
};

// Of all ranks. Collective.
std::vector<Seat> gather_seats(Communicator& world, const Seat& mine) {
  struct Message {
    uint64_t number;
    std::array<char, 64> host;
    cpu_set_t cores;
  };
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Message));
  Message message{mine.number, {}, mine.cores};
  mine.host.copy(message.host.data(), message.host.size() - 1);
  std::vector<Message> all(static_cast<size_t>(world.size()));
  const Uncounted preparation(world);
  world.all_gather(Tensor(&message, DType::u8, {kBytes}),
                   Tensor(all.data(), DType::u8, {world.size() * kBytes}));
  std::vector<Seat> seats;
  for (const Message& m : all) seats.push_back({m.number, m.host.data(), m.cores});
  return seats;
}

// What tells this job from others on this host.
std::string job_name() {
  for (const char* name : {"PMIX_NAMESPACE", "SLURM_JOB_ID"})
    if (const char* value = std::getenv(name)) return value;
  return "";
}

constexpr std::chrono::seconds kReportLimit(30);  // twice what a report and its patience take

// Ends the job with the failure of this rank.
int end_job(const Failure& failure, int rank, int size, const std::string& host) {
  for (int signal : {SIGINT, SIGTERM})
    std::signal(signal, SIG_DFL);  // the abort of another rank ends this one
  // What a report is written to may be lost with the peers, such as a file system.
  std::optional<Deadline> deadline;
  if (size > 1) deadline.emplace("telling why: " + failure.message, kReportLimit, failure.code);
  const int code =
      report_failure({.rank = rank, .size = size, .host = host, .failure = failure, .job = job_name()});
  if (size > 1) abort_mpi(code);
  return code;
}

}  // namespace

LaunchedRank launched_rank(const Environment& environment) {
  const int open_mpi_size = number_or(environment("OMPI_COMM_WORLD_SIZE"), 0);
  if (open_mpi_size > 0) return {open_mpi_size, number_or(environment("OMPI_COMM_WORLD_RANK"), 0), true};
  const int tasks = number_or(environment("SLURM_STEP_NUM_TASKS"), 1);
  if (environment("PMIX_RANK") != nullptr || environment("PMIX_NAMESPACE") != nullptr)
    return {tasks, number_or(environment("PMIX_RANK"), 0), true};
  if (tasks > 1)
    throw UsageError("srun started {} tasks without PMIx, so that they cannot meet; use srun --mpi=pmix",
                     tasks);
  return {};
}

int local_rank_from(const Environment& environment) {
  for (const char* name :
       {"OMPI_COMM_WORLD_LOCAL_RANK", "PMIX_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"})
    if (environment(name) != nullptr) return number_or(environment(name), 0);
  return -1;
}

std::vector<int> core_share(const std::vector<std::vector<int>>& allowed, int local_rank) {
  const size_t ranks = allowed.size();
  const auto rank = static_cast<size_t>(local_rank);
  const std::vector<int>& own = allowed[rank];
  std::set<int> all;
  size_t sum = 0;
  for (const std::vector<int>& cores : allowed) {
    all.insert(cores.begin(), cores.end());
    sum += cores.size();
  }
  if (all.size() == sum) return own;  // bound to separate cores
  const size_t share = std::max<size_t>(1, all.size() / ranks);
  if (own.size() < all.size())  // bound to sets that overlap: no slice of one belongs to this rank alone
    return std::vector<int>(own.begin(),
                            own.begin() + static_cast<std::ptrdiff_t>(std::min(share, own.size())));
  if (own.size() < ranks) return {own[rank % own.size()]};
  const auto at = [&](size_t r) { return own.begin() + static_cast<std::ptrdiff_t>(own.size() * r / ranks); };
  return std::vector<int>(at(rank), at(rank + 1));
}

Worker::Worker() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  host_ = name;
  hosts_ = {host_};
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_SET(0, &set);

  std::vector<std::vector<int>> allowed{cores_in(set)};
  int host_rank = 0;
  mpi_ = launched_rank(std::getenv).mpi;
  if (mpi_) {
    if (!start_mpi())
      throw UsageError("MPI offers no MPI_THREAD_FUNNELED; build it with support for threads");
    world_ = mpi_world();
    const std::vector<Seat> seats = gather_seats(*world_, {host_number(), host_, set});
    allowed.clear();
    hosts_.clear();
    for (size_t r = 0; r < seats.size(); ++r) {
      hosts_.push_back(seats[r].host);
      if (seats[r].number != host_number()) continue;
      if (static_cast<int>(r) < world_->rank()) ++host_rank;
      allowed.push_back(cores_in(seats[r].cores));
    }
    num_local_ranks_ = static_cast<int>(allowed.size());
    if (std::set(hosts_.begin(), hosts_.end()).size() > 1) world_->set_hosts(hosts_);
  } else {
    world_ = single_rank();
  }
  const int told = local_rank_from(std::getenv);
  local_rank_ = mpi_ && told >= 0 ? told : host_rank;
  cores_ = core_share(allowed, host_rank);
  std::set<int> all;
  for (const std::vector<int>& cores : allowed) all.insert(cores.begin(), cores.end());
  cores_shared_ = all.size() < allowed.size();
  set_log_rank(rank());
}

Worker::~Worker() {
  const std::chrono::nanoseconds limit = world_->timeout();
  world_.reset();
  if (mpi_) finish_mpi(limit);
}

int Worker::take_threads(int requested, bool pin) {
  if (pin && !cores_shared_) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int core : cores_) CPU_SET(static_cast<size_t>(core), &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
      log_warning("the threads cannot be tied to their {} cores; going on without", cores_.size());
  }
  int threads = requested > 0 ? requested : static_cast<int>(cores_.size());
  if (const int granted = granted_cores(); requested == 0 && granted > 0)
    threads = std::min(threads, std::max(1, granted / num_local_ranks_));
  omp_set_num_threads(threads);
  return threads;
}

std::string tensor_groups_apart(const std::vector<std::string>& hosts, int tp) {
  const auto size = static_cast<size_t>(tp);
  size_t apart = 0;
  std::string example;
  for (size_t first = 0; first + size <= hosts.size(); first += size) {
    const std::vector<std::string> group(hosts.begin() + static_cast<std::ptrdiff_t>(first),
                                         hosts.begin() + static_cast<std::ptrdiff_t>(first + size));
    const std::set<std::string> names(group.begin(), group.end());
    if (names.size() == 1) continue;
    if (apart++ == 0)
      example = fmt::format("ranks {} to {}, on {}", first, first + size - 1, fmt::join(names, ", "));
  }
  if (apart == 0) return "";
  std::map<std::string, int> ranks_of;
  for (const std::string& host : hosts) ++ranks_of[host];
  int fewest = static_cast<int>(hosts.size());
  for (const auto& [host, ranks] : ranks_of) fewest = std::min(fewest, ranks);
  return fmt::format(
      "{} tensor-parallel group{} span{} hosts ({}{}): every layer waits for the network. {}", apart,
      apart == 1 ? "" : "s", apart == 1 ? "s" : "", apart == 1 ? "" : "such as ", example,
      fewest < tp
          ? fmt::format("Set parallel.tp to at most the ranks of a host ({}), or start more ranks on each.",
                        fewest)
          : "Let consecutive ranks share a host, a multiple of parallel.tp of them (mpirun --map-by slot, or "
            "--map-by ppr:N:node).");
}

int run_worker(const std::function<int(Worker&)>& body, SignalUse signals) {
  std::unique_ptr<Worker> worker;
  try {
    if (signals == SignalUse::save)
      install_signal_handlers();  // first: a signal while MPI starts must not kill the job
    worker = std::make_unique<Worker>();
    const int code = body(*worker);
    if (signals == SignalUse::end) print_warnings_of_all(worker->world());
    return code;
  } catch (...) {
    const Failure failure = current_failure();
    if (!worker) {  // no MPI to end the others with: rank 0 speaks for all
      const int rank =
          number_or(std::getenv("OMPI_COMM_WORLD_RANK"), number_or(std::getenv("SLURM_PROCID"), 0));
      return rank > 0 ? failure.code : end_job(failure, 0, 1, "");
    }
    return end_job(failure, worker->rank(), worker->size(), worker->host());
  }
}

}  // namespace transxssm
