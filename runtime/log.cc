#include "runtime/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <mutex>

#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

// Two spdlog loggers, because the terminal and the file differ in what they show and in their time stamps.
struct Log {
  Log() : terminal("terminal", std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
    terminal.set_pattern("%H:%M:%S %v");
    terminal.set_level(spdlog::level::info);
  }
  std::mutex mutex;
  int rank = 0;
  spdlog::logger terminal;
  std::shared_ptr<spdlog::logger> file;
};

Log& log() {
  static Log* instance = new Log;  // never destroyed: static destructors and handlers may still log
  return *instance;
}

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

}  // namespace

void set_log_rank(int rank) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  l.rank = rank;
  l.terminal.set_level(rank == 0 ? spdlog::level::info : spdlog::level::warn);
}

void open_log_file(const std::string& path) {
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  try {
    l.file =
        std::make_shared<spdlog::logger>("file", std::make_shared<spdlog::sinks::basic_file_sink_mt>(path));
  } catch (const spdlog::spdlog_ex& error) {
    throw UsageError("log file {} cannot be opened: {}; choose another log.run_directory", path,
                     error.what());
  }
  l.file->set_pattern("%Y-%m-%d %H:%M:%S.%e %l: %v");
  l.file->set_level(spdlog::level::debug);
  l.file->flush_on(spdlog::level::debug);                       // lines must survive a crash of this process
  l.file->set_error_handler([path](const std::string& error) {  // a full disk must not stop the training
    static std::atomic<bool> warned{false};
    if (!warned.exchange(true))
      std::fprintf(stderr, "warning: log file %s: %s; going on without it\n", path.c_str(), error.c_str());
  });
}

void log_line(LogLevel level, const std::string& text) {
  const std::string message = printable_message(text);  // it may quote a file
  Log& l = log();
  const std::lock_guard lock(l.mutex);
  std::string prefix;
  if (level >= LogLevel::warning) prefix = level == LogLevel::warning ? "warning: " : "error: ";
  if (level >= LogLevel::warning && l.rank != 0) prefix += fmt::format("rank {}: ", l.rank);
  l.terminal.log(spdlog_level(level), "{}{}", prefix, message);
  if (l.file) l.file->log(spdlog_level(level), message);
}

}  // namespace transxssm
