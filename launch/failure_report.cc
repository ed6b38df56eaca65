#include "launch/failure_report.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include "launch/progress.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPoll(50);
constexpr milliseconds kQuiet(200);      // without another failure: all that fail together have
constexpr milliseconds kCollect(1000);   // at most
constexpr milliseconds kPatience(7500);  // for the end, twice
constexpr size_t kMaxMessages = 8;       // different ones that are printed

enum class Claim { won, lost, impossible };

// The report as a file, in the run's log directory, which one rank can make.
class ReportFile {
 public:
  ~ReportFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  // Of the whole job, or of those of its ranks that run on `host`.
  Claim claim(const std::string& host) {
    if (progress_directory().empty()) return Claim::impossible;
    const std::string path =
        fmt::format("{}/failure{}{}.txt", progress_directory(), host.empty() ? "" : "-", host);
    descriptor_ = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (descriptor_ >= 0) return Claim::won;
    return errno == EEXIST ? Claim::lost : Claim::impossible;
  }
  // There and to the terminal.
  void print(const std::string& text) {
    log_for_all(LogLevel::error, text);
    const std::string line = text + "\n";
    if (descriptor_ >= 0) [[maybe_unused]]
      const ssize_t written = write(descriptor_, line.data(), line.size());
  }

 private:
  int descriptor_ = -1;
};

// A name that one process of a host can have, until it ends.
Claim claim_name(const std::string& job, int attempt) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;  // its name begins with a zero byte: no file
  const std::string name = fmt::format("transxssm-failure-{}-{}-{}", getuid(), job, attempt);
  const size_t bytes = name.copy(address.sun_path + 1, sizeof(address.sun_path) - 1);
  const int end = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (end < 0) return Claim::impossible;
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + bytes);
  if (bind(end, reinterpret_cast<const sockaddr*>(&address), length) == 0) return Claim::won;  // stays open
  close(end);
  return errno == EADDRINUSE ? Claim::lost : Claim::impossible;
}

std::vector<Progress> failed_ranks(int size) {
  std::vector<Progress> failed = read_progress(progress_directory(), size);
  std::erase_if(failed, [](const Progress& p) { return p.failure == 0; });
  return failed;
}

// Until nobody has joined for a while.
std::vector<Progress> collect(int size) {
  const Clock::time_point start = Clock::now();
  Clock::time_point changed = start;
  std::vector<Progress> failed = failed_ranks(size);
  while (failed.size() < static_cast<size_t>(size) && Clock::now() - changed < kQuiet &&
         Clock::now() - start < kCollect) {
    std::this_thread::sleep_for(kPoll);
    std::vector<Progress> now = failed_ranks(size);
    if (now.size() != failed.size()) changed = Clock::now();
    failed = std::move(now);
  }
  return failed;
}

struct Said {
  Failure failure;
  Progress first;  // the lowest rank that says so
  size_t others = 0;
};

// Without the rank it begins with, which differs where all wait for the same.
std::string without_own_rank(const Progress& p) {
  const std::string own = fmt::format("Rank {} in ", p.rank);
  return p.message.starts_with(own) ? "in " + p.message.substr(own.size()) : p.message;
}

// One for each different failure: what a rank met itself goes before its peers' waiting in vain.
std::vector<Said> group(const std::vector<Progress>& failed) {
  std::vector<Said> said;
  for (const Progress& p : failed) {
    const std::string message = without_own_rank(p);
    const auto same = std::find_if(said.begin(), said.end(), [&](const Said& s) {
      return s.failure.code == p.failure && s.failure.message == message;
    });
    if (same != said.end()) {
      ++same->others;
    } else {
      said.push_back({{p.failure, message}, p, 0});
    }
  }
  std::stable_partition(said.begin(), said.end(), [](const Said& s) {
    return s.failure.code != static_cast<int>(ExitCode::communication);
  });
  return said;
}

std::string line(const Said& said, int size) {
  const bool usage = said.failure.code == static_cast<int>(ExitCode::usage);
  std::string who;
  if (size > 1 && !(usage && said.first.rank == 0))
    who = said.others == 0 ? fmt::format("rank {}: ", said.first.rank)
                           : fmt::format("rank {} and {} other{}: ", said.first.rank, said.others,
                                         said.others == 1 ? "" : "s");
  return fmt::format("{}{} ({}exit code {})", who, said.failure.message,
                     size > 1 ? "on " + said.first.host + ", " : "", said.failure.code);
}

int print(const FailedRank& self, ReportFile& report) {
  std::vector<Progress> failed;
  if (self.size > 1 && !progress_directory().empty()) failed = collect(self.size);
  if (failed.empty()) {
    Progress own;
    own.rank = self.rank;
    own.host = self.host;
    own.failure = self.failure.code;
    own.message = self.failure.message;
    failed.push_back(own);
  }
  for (Progress& p : failed)
    if (p.rank == self.rank) p.message = self.failure.message;  // whole
  std::vector<Said> said = group(failed);
  const int code = said.front().failure.code;
  if (std::any_of(failed.begin(), failed.end(),
                  [](const Progress& p) { return p.failure == static_cast<int>(ExitCode::communication); })) {
    const std::string table = progress_table();
    if (!table.empty()) report.print(table);
  }
  size_t left = 0;
  for (size_t i = kMaxMessages; i < said.size(); ++i) left += 1 + said[i].others;
  said.resize(std::min(said.size(), kMaxMessages), {});
  for (const Said& s : said)
    if (!s.failure.message.empty()) report.print(line(s, self.size));
  if (left > 0) report.print(fmt::format("{} more ranks failed in other ways: see their log files", left));
  return code;
}

}  // namespace

int report_failure(const FailedRank& self) {
  ReportFile report;
  if (self.size == 1) return print(self, report);
  log_to_file(LogLevel::error, self.failure.message);  // first: nobody else is needed for it
  publish_failure(self.failure.code, self.failure.message);
  for (int attempt = 0; attempt < 2; ++attempt) {
    // Whoever speaks for all may be on a host that is cut off: then one speaks on each.
    Claim claim = report.claim(attempt == 0 ? "" : self.host);
    if (claim == Claim::impossible) {
      claim = claim_name(self.job, attempt);
      // Rank 0's host speaks first, and the end of the job silences the others.
      if (claim != Claim::lost && self.rank > 0)
        std::this_thread::sleep_for(milliseconds(500 + std::min(20 * self.rank, 9000)));
    }
    if (claim != Claim::lost) return print(self, report);
    std::this_thread::sleep_for(kPatience);  // the rank that reports ends this one; it may be dead itself
  }
  return self.failure.code;
}

}  // namespace transxssm
