// Where the ranks of a job run.
#pragma once

#include <string>
#include <vector>

namespace transxssm {

// "host a"; of several "3 hosts: a (ranks 0-7), b (ranks 8-15), c (ranks 16-23)", of which eight are named.
std::string describe_hosts(const std::vector<std::string>& host_of_rank);

}  // namespace transxssm
