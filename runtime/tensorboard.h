// Scalars in TensorBoard's event files, written without TensorFlow: records {u64 length, masked CRC32C of it,
// data, masked CRC32C of data}, data being Event messages (tensorflow/core/util/event.proto) encoded by hand.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "runtime/append_file.h"

namespace transxssm {

class EventWriter {
 public:
  // Opens a new file in `directory`, beside those of earlier starts of the run. `first_step` is the first
  // step that will be written; the file begins with SessionLog START at that step, which makes readers drop
  // what an interrupted start wrote from there on.
  EventWriter(const std::string& directory, int64_t first_step);

  // A scalar that goes back in its tag's steps is left out: readers take it for a restart and drop the newer
  // ones. False when the file cannot be written (see error()).
  bool scalar(std::string_view tag, int64_t step, double value, double wall_time);

  const std::string& path() const { return file_.path(); }
  const std::string& error() const { return file_.error(); }

 private:
  bool begin();

  int64_t first_step_;
  AppendFile file_;
  bool begun_ = false;
  std::map<std::string, int64_t, std::less<>> last_step_;
};

// The record framing, for tests.
std::string tensorboard_record(std::string_view data);

}  // namespace transxssm
