// One process of a job: its life with MPI, its rank, its share of the host's cores, and the one place where
// an error of any rank ends the whole job.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace transxssm {

class Worker {
 public:
  // Initialises MPI where a launcher (mpirun, srun) started this process; else the job is this one rank.
  Worker();
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  Communicator& world() { return *world_; }
  int rank() const { return world_->rank(); }
  int size() const { return world_->size(); }
  int local_rank() const { return local_rank_; }  // among the ranks of this host
  int num_local_ranks() const { return num_local_ranks_; }
  const std::string& host() const { return host_; }
  const std::vector<std::string>& hosts() const { return hosts_; }  // of all ranks

  // How many threads this rank may use: `requested`, or for 0 its share of the host's cores. With `pin` the
  // calling thread, and all that it starts from now on, stay on this rank's own cores, where there are enough
  // of them.
  int take_threads(int requested, bool pin);

 private:
  bool mpi_ = false;
  std::unique_ptr<Communicator> world_;
  int local_rank_ = 0;
  int num_local_ranks_ = 1;
  std::string host_;
  std::vector<std::string> hosts_;
  std::vector<int> cores_;  // this rank's
  bool cores_shared_ = false;
};

// What SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 do to a command: end it, as they end any program; or ask
// it to save (launch/signals.h), where it looks at that.
enum class SignalUse { end, save };

// Runs `body` as this process's part of the job and returns its exit code. An exception ends the job: it is
// printed once for all ranks that failed (launch/failure_report.h), and all ranks end with its exit code.
int run_worker(const std::function<int(Worker&)>& body, SignalUse signals = SignalUse::end);

// What to tell the user where ranks of one tensor-parallel group run on different hosts, whose every layer
// then waits for the network; "" where none do. `hosts`: of all ranks, tp innermost.
std::string tensor_groups_apart(const std::vector<std::string>& hosts, int tp);

using Environment = std::function<const char*(const char*)>;  // as std::getenv

// Rank among those of this host as the launcher says it, else -1. Open MPI's word goes before Slurm's,
// because under mpirun inside a Slurm job SLURM_LOCALID is 0 for everyone.
int local_rank_from(const Environment& environment);
// Ranks of this job, and this process's rank, as the launcher says it: {1, 0} without one. Throws UsageError
// where srun started several tasks without PMIx, which would run as so many separate jobs.
struct LaunchedRank {
  int size = 1;
  int rank = 0;
  bool mpi = false;  // a launcher is there
};
LaunchedRank launched_rank(const Environment& environment);

// The cores one rank may use, given those each rank of the host is allowed on: its own where the launcher has
// bound ranks to separate cores; an equal share where all may run everywhere; at least one.
std::vector<int> core_share(const std::vector<std::vector<int>>& allowed, int local_rank);

}  // namespace transxssm
