// The mark of a test device whose queue does its work at once: the host's clock.
#pragma once

#include <chrono>

#include "runtime/device.h"

namespace transxssm {

class ClockMark final : public DeviceMark {
 public:
  double seconds_since(const DeviceMark& earlier) const override {
    return std::chrono::duration<double>(at_ - static_cast<const ClockMark&>(earlier).at_).count();
  }

 private:
  std::chrono::steady_clock::time_point at_ = std::chrono::steady_clock::now();
};

}  // namespace transxssm
