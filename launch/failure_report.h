// The one report of a job that fails. Ranks often fail together, hundreds of them with the same words, when
// MPI may be dead: which of them speaks for all is settled by a file in the run's log directory that only one
// can create (<log>/failure.txt, the report), and what the others have to say stands in their progress
// records. Where that does not end the job, since the network between hosts is down, one rank of each host
// speaks (<log>/failure-HOST.txt) and ends what can be ended from there. Before there is a run directory, or
// without one, one rank of each host speaks, those of other hosts than rank 0's a little later.
#pragma once

#include <string>

#include "launch/failure.h"

namespace transxssm {

struct FailedRank {
  int rank = 0;
  int size = 1;
  std::string host;
  Failure failure;
  std::string job;  // tells this job's ranks from others' on this host
};

// Called by every rank that fails, before it ends the job (MPI_Abort with the code returned). The rank that
// speaks collects, for a second at most, what other ranks failed of, prints one line for each different
// message, with the table of what all ranks did where one waited in vain, and returns; the other ranks wait
// to be ended by it, for 15 seconds at most. Before all that each writes its own error to its own log file.
int report_failure(const FailedRank& self);

}  // namespace transxssm
