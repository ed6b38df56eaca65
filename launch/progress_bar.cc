#include "launch/progress_bar.h"

#include "runtime/format.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace transxssm {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kPlainSeconds = 10;
constexpr int kBarWidth = 24;

}  // namespace

ProgressBar::ProgressBar(std::string label, int64_t total, Unit unit)
    : label_(std::move(label)),
      total_(total),
      unit_(unit),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

double ProgressBar::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

std::string ProgressBar::line(int64_t done, double seconds) const {
  const double speed = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  const auto amount = [&](double value) {
    return unit_ == Unit::bytes ? format_bytes(value) : format_count(static_cast<int64_t>(value));
  };
  std::string text = label_ + "  ";
  if (total_ > 0) {
    const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0);
    const int full = static_cast<int>(share * kBarWidth);
    if (terminal_) text += fmt::format("[{:#<{}}{:.<{}}] ", "", full, "", kBarWidth - full);
    text += fmt::format("{:3.0f}%  {} of {}", 100 * share, amount(static_cast<double>(done)),
                        amount(static_cast<double>(total_)));
  } else {
    text += amount(static_cast<double>(done));
  }
  text += fmt::format("  {}/s", amount(speed));
  if (total_ > done && speed > 0)
    text += fmt::format("  {} left", format_duration(static_cast<double>(total_ - done) / speed));
  return text;
}

void ProgressBar::update(int64_t done) {
  const auto now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_).count();
  if (since < (terminal_ ? kRedrawSeconds : kPlainSeconds)) return;
  last_ = now;
  // \033[K clears what a longer line left.
  // Not fmt::print, which throws where standard error is gone: the work is worth more than its picture.
  const std::string text =
      fmt::format("{}{}{}", terminal_ ? "\r" : "", line(done, seconds()), terminal_ ? "\033[K" : "\n");
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
  drawn_ = terminal_;
}

void ProgressBar::finish() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

}  // namespace transxssm
