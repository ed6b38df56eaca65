// A progress bar on standard error: one line redrawn on a terminal, a plain line now and then elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace transxssm {

class ProgressBar {
 public:
  enum class Unit { bytes, items };
  // `total` 0: not known, so neither bar nor time left are shown.
  ProgressBar(std::string label, int64_t total, Unit unit = Unit::bytes);
  ~ProgressBar() { finish(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(int64_t done);  // cheap: draws ten times a second at most
  void finish();              // ends the line that is drawn
  double seconds() const;     // since the start

  // What stands on the line after `seconds`: label, share, amount, speed, time left.
  std::string line(int64_t done, double seconds) const;

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  int64_t total_;
  Unit unit_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_, last_;
};

}  // namespace transxssm
