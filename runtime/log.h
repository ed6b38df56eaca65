// Log lines to standard error and, once opened, to <run>/log/rank-<r>.txt. Every process writes its own file;
// on the terminal speaks rank 0, and for another rank whoever reports its warnings or its failure.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

namespace transxssm {

enum class LogLevel { debug, info, warning, error };

// Of ranks other than 0 the terminal shows errors alone, with the rank; their warnings are kept for rank 0.
void set_log_rank(int rank);
void open_log_file(const std::string& path);  // appends; throws UsageError
void log_line(LogLevel level, const std::string& message);
// What is said of the whole job: without this process's rank.
void log_for_all(LogLevel level, const std::string& message);
void log_to_file(LogLevel level, const std::string& message);  // not to the terminal

// The warnings of this rank kept since the last call: each text once, cut to kWarningBytes, 32 texts at most.
constexpr size_t kWarningBytes = 600;
std::vector<std::string> take_warnings();
bool has_warnings();  // to take
// Notes a warning of other ranks; false where the terminal has shown that text before.
bool note_warning(const std::string& text);

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
