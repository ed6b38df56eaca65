#include "runtime/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>

#include <fmt/format.h>

#include "runtime/crc32c.h"

namespace transxssm {
namespace {

// Protocol buffer wire types.
constexpr uint32_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void put_key(std::string& out, uint32_t field, uint32_t wire) {
  put_varint(out, field << 3 | wire);
}

template <class T>
void put_raw(std::string& out, T value) {  // little-endian, as every machine we build for
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out.append(bytes);
}

// Event {wall_time = 1, step = 2} with one more field of length-delimited contents.
std::string event(double wall_time, int64_t step, uint32_t field, std::string_view contents) {
  std::string out;
  put_key(out, 1, kFixed64);
  put_raw(out, wall_time);
  put_key(out, 2, kVarint);
  put_varint(out, static_cast<uint64_t>(step));
  put_bytes(out, field, contents);
  return out;
}

constexpr uint32_t kFileVersion = 3, kSummary = 5, kSessionLog = 7;  // fields of Event

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Readers order the files of a directory by name, so a later start must sort later: the second, never below
// that of the newest file, then a count.
std::string next_file_name(const std::string& directory) {
  const std::string prefix = "events.out.tfevents.";
  auto second = static_cast<int64_t>(unix_seconds());
  int64_t count = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    ++count;
    second = std::max<int64_t>(second, std::strtoll(name.c_str() + prefix.size(), nullptr, 10));
  }
  char host[256] = "host";
  if (gethostname(host, sizeof host - 1) != 0) std::strcpy(host, "host");
  return fmt::format("{}/{}{:010}.{:06}.{}", directory, prefix, second, count, host);
}

}  // namespace

std::string tensorboard_record(std::string_view data) {
  std::string out;
  put_raw(out, static_cast<uint64_t>(data.size()));
  put_raw(out, masked_crc(out));
  out.append(data);
  put_raw(out, masked_crc(data));
  return out;
}

EventWriter::EventWriter(const std::string& directory, int64_t first_step)
    : first_step_(first_step), file_(next_file_name(directory)) {
  begin();
}

bool EventWriter::begin() {
  if (begun_) return true;
  const double now = unix_seconds();
  std::string start;  // SessionLog {status = 1: START = 1}
  put_key(start, 1, kVarint);
  put_varint(start, 1);
  begun_ = file_.append(tensorboard_record(event(now, 0, kFileVersion, "brain.Event:2")) +
                        tensorboard_record(event(now, first_step_, kSessionLog, start)));
  return begun_;
}

bool EventWriter::scalar(std::string_view tag, int64_t step, double value, double wall_time) {
  const auto last = last_step_.find(tag);
  if (last != last_step_.end() && step <= last->second) return true;
  if (!begin()) return false;
  std::string entry;  // Summary.Value {tag = 1, simple_value = 2}
  put_bytes(entry, 1, tag);
  put_key(entry, 2, kFixed32);
  put_raw(entry, static_cast<float>(value));
  std::string summary;  // Summary {value = 1}
  put_bytes(summary, 1, entry);
  if (!file_.append(tensorboard_record(event(wall_time, step, kSummary, summary)))) return false;
  if (last == last_step_.end()) {
    last_step_.emplace(tag, step);
  } else {
    last->second = step;
  }
  return true;
}

}  // namespace transxssm
