// Collective helpers: every phase of a save or load ends in one, so that ranks go on together or stop
// together.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace transxssm {

std::vector<std::string> all_gather_bytes(Communicator& comm, const std::string& bytes);
void broadcast_bytes(Communicator& comm, std::string& bytes, int root);

// Runs fn; the text of the std::exception it throws, empty where it returns. What is no std::exception
// passes: tests end a process with such.
std::string problem_of(const std::function<void()>& fn);

// One entry "rank 3: ..." for each rank whose problem is not empty, the same on every rank.
std::vector<std::string> gather_problems(Communicator& comm, const std::string& problem);

// What rank 0's fn returned, on every rank; or, in `problem`, why it could not. The others wait as in
// Communicator::work: for as long as rank 0 takes.
struct FromRankZero {
  std::string problem;
  std::string value;
};
FromRankZero run_on_rank_zero(Communicator& comm, const std::function<std::string()>& fn);

// Several byte strings as one, and back.
std::string pack(const std::vector<std::string>& parts);
std::vector<std::string> unpack(const std::string& bytes);

std::string join(const std::vector<std::string>& lines, const std::string& separator);

}  // namespace transxssm
