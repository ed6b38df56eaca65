#include "launch/progress.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include "parallel/communicator.h"
#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

// The file. One writer; a reader takes it as it is: a torn record costs at most a wrong word in a report.
struct Record {
  uint64_t magic;
  int64_t pid;
  int64_t step;
  int64_t changed_ns;  // of the system clock, which other hosts share
  int64_t sequence;
  int32_t waiting;
  int32_t peer;
  char host[64];
  char action[64];
  char communicator[64];
  char operation[32];
  int32_t failure;
  char message[700];
};
constexpr uint64_t kMagic = 0x3330475250585854;  // "TXXPRG03"
constexpr size_t kEachOnItsLine = 16;            // ranks of a table

thread_local Record* record = nullptr;  // this rank's, in the thread that is the rank
std::string record_directory;
int record_size = 0;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

template <size_t N>
void assign(char (&to)[N], std::string_view from) {
  const size_t bytes = std::min(N - 1, from.size());
  std::memcpy(to, from.data(), bytes);
  to[bytes] = '\0';
}

// A text of a record, which anyone may have written.
template <size_t N>
std::string_view text_of(const char (&from)[N]) {
  return {from, strnlen(from, N)};
}

std::string host_name() {
  char name[64] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

void observe_wait(const WaitStatus* status) {
  if (record == nullptr) return;
  if (status != nullptr) {
    assign(record->communicator, status->communicator);
    assign(record->operation, status->operation);
    record->sequence = status->sequence;
    record->peer = status->peer;
  }
  record->waiting = status != nullptr ? 1 : 0;
  record->changed_ns = now_ns();
}

std::string record_path(const std::string& directory, int rank) {
  return fmt::format("{}/progress-rank-{}", directory, rank);
}

// What the operating system of this host says about a process; "" for one that runs or sleeps.
std::string process_state(int64_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  if (!std::getline(file, text)) return "gone";
  const size_t end = text.rfind(')');  // the name before it may hold anything
  const char state = end != std::string::npos && end + 2 < text.size() ? text[end + 2] : 'R';
  return state == 'T' || state == 't' ? "stopped" : state == 'Z' || state == 'X' ? "gone" : "";
}

// The sentence that names the rank all others wait for in the end.
std::string verdict(const std::vector<Progress>& records) {
  const auto describe = [](const Progress& p) {
    return fmt::format("rank {} ({}, pid {}) is {}: step {}, {}", p.rank, p.host, p.pid,
                       p.state.empty() ? "behind" : p.state, p.step, p.action);
  };
  for (const Progress& p : records)
    if (!p.state.empty()) return describe(p);
  const auto find = [&](int rank) {
    return std::find_if(records.begin(), records.end(), [rank](const Progress& p) { return p.rank == rank; });
  };
  auto at = std::min_element(records.begin(), records.end(),
                             [](const Progress& a, const Progress& b) { return a.step < b.step; });
  std::set<int> seen;
  std::set<std::string> hosts;
  std::string chain;
  while (at->waiting && seen.insert(at->rank).second) {
    hosts.insert(at->host);
    chain += fmt::format("{} -> ", at->rank);
    const auto next = find(at->peer);
    if (next == records.end()) return fmt::format("rank {} left no record", at->peer);
    at = next;
  }
  if (at->waiting)
    return fmt::format("ranks wait for one another: {}{}{}", chain, at->rank,
                       hosts.size() == 1
                           ? ""
                           : fmt::format(" on {}; is the network between them up?", fmt::join(hosts, ", ")));
  return describe(*at);
}

}  // namespace

void clear_progress(const std::string& directory) {
  std::error_code ignored;  // what cannot be removed is written over
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("progress-rank-") || name.starts_with("failure"))
      std::filesystem::remove(entry.path(), ignored);
  }
}

void open_progress(const std::string& directory, int rank, int size) {
  TRANSXSSM_CHECK(record == nullptr, "progress is opened once");
  const std::string path = record_path(directory, rank);
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  // Blocks are taken now: on a full disk a store into a hole would kill the process later.
  int error = file < 0 ? errno : posix_fallocate(file, 0, sizeof(Record));
  void* memory = MAP_FAILED;
  if (error == 0) memory = mmap(nullptr, sizeof(Record), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (error == 0 && memory == MAP_FAILED) error = errno;
  if (file >= 0) close(file);
  if (error != 0)
    throw UsageError("{} cannot be made: {}; choose another log.run_directory", path, std::strerror(error));
  std::memset(memory, 0, sizeof(Record));
  record = static_cast<Record*>(memory);
  record->pid = getpid();
  assign(record->host, host_name());
  assign(record->action, "start");
  record->changed_ns = now_ns();
  record->magic = kMagic;
  record_directory = directory;
  record_size = size;
  set_wait_observer(observe_wait);
}

void publish_progress(int64_t step, std::string_view action) {
  if (record == nullptr) return;
  record->step = step;
  assign(record->action, action);
  record->changed_ns = now_ns();
}

void publish_failure(int code, std::string_view message) {
  if (record == nullptr) return;
  assign(record->message, message);
  record->failure = code;
  msync(record, sizeof(Record), MS_SYNC);  // other hosts read the file
}

const std::string& progress_directory() {
  return record_directory;
}

std::vector<Progress> read_progress(const std::string& directory, int size) {
  std::vector<Progress> records;
  const std::string here = host_name();
  for (int rank = 0; rank < size; ++rank) {
    std::ifstream file(record_path(directory, rank), std::ios::binary);
    Record r = {};
    if (!file.read(reinterpret_cast<char*>(&r), sizeof r) || r.magic != kMagic) continue;
    Progress p;
    p.rank = rank;
    p.host = printable(text_of(r.host));
    p.pid = r.pid;
    p.step = r.step;
    p.action = printable(text_of(r.action));
    p.waiting = r.waiting != 0;
    if (p.waiting)
      p.operation =
          printable(fmt::format("{} {} #{}", text_of(r.operation), text_of(r.communicator), r.sequence));
    p.peer = p.waiting ? r.peer : -1;
    p.seconds_ago = (static_cast<double>(now_ns()) - static_cast<double>(r.changed_ns)) * 1e-9;
    if (p.host == here) p.state = process_state(p.pid);
    p.failure = r.failure;
    if (p.failure != 0) p.message = printable_message(text_of(r.message));
    records.push_back(p);
  }
  return records;
}

std::string progress_table(const std::vector<Progress>& records) {
  if (records.empty()) return "no rank left a record";
  // What is said of a rank, and those of which it is said: of few ranks each alone.
  std::vector<std::pair<std::string, std::vector<const Progress*>>> rows;
  std::map<std::string, size_t> known;
  for (const Progress& p : records) {
    const std::string doing =
        p.waiting ? fmt::format("waits for rank {} in {}", p.peer, p.operation) : "computes";
    const std::string said = fmt::format("step {:<8} {:<20} {:<42}{}", p.step, p.action, doing,
                                         p.state.empty() ? "" : " process is " + p.state);
    const bool few = records.size() <= kEachOnItsLine;
    const auto [at, is_new] = known.emplace(few ? std::to_string(p.rank) : said, rows.size());
    if (is_new) rows.push_back({said, {}});
    rows[at->second].second.push_back(&p);
  }
  std::string text = "what every rank did last:\n";
  for (const auto& [said, ranks] : rows) {
    const Progress& p = *ranks.front();
    text += fmt::format("  rank {:<4} {:<16} {} since {:.1f} s{}\n", p.rank, p.host, said, p.seconds_ago,
                        ranks.size() == 1 ? "" : fmt::format(", and {} other ranks", ranks.size() - 1));
  }
  return text + "verdict: " + verdict(records);
}

std::string progress_table() {
  return record == nullptr ? "" : progress_table(read_progress(record_directory, record_size));
}

}  // namespace transxssm
