#include "runtime/trace.h"

#include <nlohmann/json.hpp>

#include <numeric>

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;

// Of the calling thread.
struct Account {
  ActivitySeconds seconds;
  Activity current = Activity::other;
  Clock::time_point since = Clock::now();

  void change_to(Activity next) {
    const Clock::time_point now = Clock::now();
    seconds.seconds[static_cast<size_t>(current)] += std::chrono::duration<double>(now - since).count();
    since = now;
    current = next;
  }
};

thread_local Account account;
thread_local Trace* installed = nullptr;
thread_local const char* innermost = "";  // name of the span that is open

}  // namespace

struct Trace::OnDevice {
  TraceEvent event;  // without its times
  std::unique_ptr<DeviceMark> begin, end;
};

const char* activity_name(Activity activity) {
  constexpr std::array<const char*, kNumActivities> names = {"other",  "compute", "communication", "waiting",
                                                             "bubble", "data",    "optimizer"};
  return names[static_cast<size_t>(activity)];
}

double ActivitySeconds::total() const {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

ActivitySeconds take_activity_seconds() {
  account.change_to(account.current);
  return std::exchange(account.seconds, {});
}

Trace::Trace() : start_(Clock::now()) {
  TRANSXSSM_CHECK(installed == nullptr, "a thread has one trace at a time");
  installed = this;
}

Trace::~Trace() {
  installed = nullptr;
}

bool Trace::active() {
  return installed != nullptr;
}

std::vector<TraceEvent> Trace::take() {
  if (!on_device_.empty()) {
    const DeviceMark& origin = *on_device_.front().begin;
    for (OnDevice& e : on_device_) {
      e.event.begin = e.begin->seconds_since(origin);
      e.event.end = e.end->seconds_since(origin);
      e.event.device = true;
      events_.push_back(std::move(e.event));
    }
    on_device_.clear();
  }
  return std::exchange(events_, {});
}

Span::Span(Activity activity, const char* name, Stream* stream)
    : outer_(account.current),
      activity_(activity == Activity::compute && outer_ != Activity::other ? outer_ : activity),
      name_(name),
      inside_(std::exchange(innermost, name)),
      stream_(stream),
      kept_(installed != nullptr) {
  account.change_to(activity_);
  if (!kept_) return;
  begin_ = installed->now();
  if (stream != nullptr && stream->queue() != nullptr) device_begin_ = stream->queue()->mark();
}

Span::~Span() {
  account.change_to(outer_);
  innermost = inside_;
  if (!kept_ || installed == nullptr) return;
  TraceEvent event{.name = name_,
                   .inside = inside_,
                   .activity = activity_,
                   .begin = begin_,
                   .end = installed->now(),
                   .bytes = bytes_,
                   .flops = flops_,
                   .shape = std::move(shape_)};
  if (device_begin_ != nullptr) {
    installed->on_device_.push_back({event, std::move(device_begin_), stream_->queue()->mark()});
    event.bytes = event.flops = 0;  // the device's event has them
  }
  installed->events_.push_back(std::move(event));
}

std::string to_chrome_events(const RankTrace& rank) {
  using nlohmann::json;
  json events = json::array();
  constexpr int kHostRow = 0, kDeviceRow = 1;
  const auto name_row = [&](int row, const char* kind, const std::string& name) {
    events.push_back(
        {{"ph", "M"}, {"pid", rank.rank}, {"tid", row}, {"name", kind}, {"args", {{"name", name}}}});
  };
  name_row(kHostRow, "process_name", "rank " + std::to_string(rank.rank) + " on " + rank.host);
  name_row(kHostRow, "thread_name", "host");
  bool on_device = false;
  for (const TraceEvent& e : rank.events) {
    on_device = on_device || e.device;
    json event = {{"ph", "X"},
                  {"pid", rank.rank},
                  {"tid", e.device ? kDeviceRow : kHostRow},
                  {"name", e.name},
                  {"cat", activity_name(e.activity)},
                  {"ts", e.begin * 1e6},
                  {"dur", (e.end - e.begin) * 1e6}};
    if (e.bytes > 0) event["args"]["bytes"] = e.bytes;
    if (e.flops > 0) event["args"]["flops"] = e.flops;
    if (!e.shape.empty()) event["args"]["shape"] = e.shape;
    events.push_back(std::move(event));
  }
  if (on_device) name_row(kDeviceRow, "thread_name", "device");
  const std::string text = events.dump();
  return text.substr(1, text.size() - 2);  // without the brackets
}

std::string to_chrome_trace(const std::vector<std::string>& parts) {
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  for (size_t i = 0; i < parts.size(); ++i) text += (i == 0 ? "" : ",") + parts[i];
  return text + "]}\n";
}

}  // namespace transxssm
