#include "runtime/log.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <mutex>
#include <set>
#include <utility>

#include "runtime/append_file.h"
#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

constexpr size_t kMaxKept = 32;    // warnings for rank 0
constexpr size_t kMaxSaid = 1000;  // warnings remembered

// A file to append to, which may fail without harm: a full disk costs lines and one warning.
class FileSink final : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {  // Log has the mutex
 public:
  explicit FileSink(const std::string& path) : file_(path) {}
  const std::string& error() const { return file_.error(); }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t text;
    formatter_->format(message, text);
    if (file_.append({text.data(), text.size()}) || warned_) return;
    warned_ = true;
    std::fprintf(stderr, "warning: log file %s: %s; going on, some of its lines are lost\n",
                 file_.path().c_str(), file_.error().c_str());
  }
  void flush_() override {}

 private:
  AppendFile file_;
  bool warned_ = false;
};

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// Two spdlog loggers, because the terminal and the file differ in what they show and in their time stamps.
struct Log {
  Log() : terminal("terminal", std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
    terminal.set_pattern("%H:%M:%S %v");
    terminal.set_level(spdlog::level::info);
  }

  void to_terminal(LogLevel level, const std::string& who, const std::string& message) {
    const char* kind = level == LogLevel::warning ? "warning: " : level == LogLevel::error ? "error: " : "";
    terminal.log(spdlog_level(level), "{}{}{}", kind, who,
                 printable_message(message));  // it may quote a file
  }
  void to_file(LogLevel level, const std::string& message) {
    if (file) file->log(spdlog_level(level), "{}", printable_message(message));
  }
  // Whether the warning is a new one.
  bool note(const std::string& text) {
    return said.size() < kMaxSaid ? said.insert(text).second : !said.contains(text);
  }

  std::mutex mutex;
  int rank = 0;
  spdlog::logger terminal;
  std::shared_ptr<spdlog::logger> file;
  std::set<std::string> said;     // warnings, cut to kWarningBytes
  std::vector<std::string> kept;  // those among them that rank 0 is to print
};

Log& log() {
  static Log* instance = new Log;  // never destroyed: static destructors and handlers may still log
  return *instance;
}

}  // namespace

void set_log_rank(int rank) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  l.rank = rank;
  l.terminal.set_level(rank == 0 ? spdlog::level::info : spdlog::level::err);
}

void open_log_file(const std::string& path) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  auto sink = std::make_shared<FileSink>(path);
  if (!sink->error().empty())
    throw UsageError("log file {} cannot be opened: {}; choose another log.run_directory", path,
                     sink->error());
  l.file = std::make_shared<spdlog::logger>("file", std::move(sink));
  l.file->set_pattern("%Y-%m-%d %H:%M:%S.%e %l: %v");
  l.file->set_level(spdlog::level::debug);
}

void log_line(LogLevel level, const std::string& message) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  if (level == LogLevel::warning) {
    const std::string text = message.substr(0, kWarningBytes);
    if (!l.note(text)) return l.to_file(level, message);
    if (l.rank != 0 && l.kept.size() < kMaxKept) l.kept.push_back(text);
  }
  l.to_terminal(level, level == LogLevel::error && l.rank != 0 ? fmt::format("rank {}: ", l.rank) : "",
                message);
  l.to_file(level, message);
}

void log_for_all(LogLevel level, const std::string& message) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  l.to_terminal(level, "", message);
  l.to_file(level, message);
}

void log_to_file(LogLevel level, const std::string& message) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  l.to_file(level, message);
}

std::vector<std::string> take_warnings() {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  return std::exchange(l.kept, {});
}

bool has_warnings() {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  return !l.kept.empty();
}

bool note_warning(const std::string& text) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  return l.note(text);
}

}  // namespace transxssm
