// What a rank does with its time: spans of named work. They always add up by activity (a few clock reads
// each), for the metrics; while a Trace is installed each span is also kept, for the time by operation and
// for a Chrome/Perfetto trace file. Everything here belongs to the thread it is called on, which is its
// rank's.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/stream.h"

namespace transxssm {

// `waiting`: for a slower rank, in the midst of communication, which is without that time what moves bytes.
enum class Activity : uint8_t { other, compute, communication, waiting, bubble, data, optimizer };
inline constexpr int kNumActivities = 7;
const char* activity_name(Activity activity);

// Seconds of this thread by activity; an inner span's time counts as the inner's alone, but for operations
// (compute) inside another activity, which count as that.
struct ActivitySeconds {
  std::array<double, kNumActivities> seconds{};
  double operator[](Activity a) const { return seconds[static_cast<size_t>(a)]; }
  double total() const;
};
// Since the last call; what is not in any span is `other`.
ActivitySeconds take_activity_seconds();

struct TraceEvent {
  const char* name;         // lives as long as the program
  const char* inside = "";  // name of the span around it
  Activity activity;
  double begin = 0;  // seconds since the trace was made; on a device, of its own clock
  double end = 0;
  bool device = false;  // ran on the stream's device, not on the host
  double bytes = 0;  // that it must move at the least, and the arithmetic it must do, where its maker said so
  double flops = 0;
  std::string shape;  // of its operands, where its maker said so
};

// Keeps the spans of the thread that made it, from then until it is destroyed. One a thread at a time.
class Trace {
 public:
  Trace();
  ~Trace();
  // This thread has one.
  static bool active();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  // Everything so far, in order of completion; waits for the devices' part.
  std::vector<TraceEvent> take();

 private:
  friend class Span;
  struct OnDevice;
  using Clock = std::chrono::steady_clock;
  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  Clock::time_point start_;
  std::vector<TraceEvent> events_;
  std::vector<OnDevice> on_device_;
};

// A scope's work. With a stream of a device, the device's time for what the scope queues is kept as well.
class Span {
 public:
  Span(Activity activity, const char* name, Stream* stream = nullptr);
  ~Span();
  // A trace is installed.
  bool kept() const { return kept_; }
  void set_cost(double bytes, double flops) { bytes_ = bytes, flops_ = flops; }
  void set_shape(std::string shape) { shape_ = std::move(shape); }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Activity outer_;
  Activity activity_;
  const char* name_;
  const char* inside_;
  Stream* stream_;
  bool kept_;
  double begin_ = 0, bytes_ = 0, flops_ = 0;
  std::string shape_;
  std::unique_ptr<DeviceMark> device_begin_;
};

// The spans of one rank as rows of a trace file: a row for the host and, where there are any, one for the
// device.
struct RankTrace {
  int rank = 0;
  std::string host;
  std::vector<TraceEvent> events;
};
// Chrome's trace event format (JSON), which chrome://tracing and ui.perfetto.dev open: one rank's part, and
// the file that the parts of all ranks make.
std::string to_chrome_events(const RankTrace& rank);
std::string to_chrome_trace(const std::vector<std::string>& parts);

}  // namespace transxssm
