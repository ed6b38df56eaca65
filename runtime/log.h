// Log lines to standard error and, once opened, to <run>/log/rank-<r>.txt. Every process writes its own file;
// only rank 0 prints informational lines to the terminal.
#pragma once

#include <fmt/format.h>

#include <string>

namespace transxssm {

enum class LogLevel { debug, info, warning, error };

// Names this process's rank in every line; ranks other than 0 print only warnings and errors.
void set_log_rank(int rank);
void open_log_file(const std::string& path);  // appends
void log_line(LogLevel level, const std::string& message);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace transxssm
