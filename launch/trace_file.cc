#include "launch/trace_file.h"

#include "runtime/file_system.h"

namespace transxssm {

void write_trace(const std::string& file, const std::vector<TraceEvent>& events, Communicator& world,
                 const std::string& host) {
  std::string mine = to_chrome_events({.rank = world.rank(), .host = host, .events = events});
  auto size = static_cast<int64_t>(mine.size());
  if (world.rank() > 0) {
    world.send(Tensor(&size, DType::i64, {1}), 0).wait();
    world.send(Tensor(mine.data(), DType::u8, {size}), 0).wait();
    return;
  }
  std::vector<std::string> parts = {std::move(mine)};
  for (int rank = 1; rank < world.size(); ++rank) {
    world.receive(Tensor(&size, DType::i64, {1}), rank).wait();
    std::string part(static_cast<size_t>(size), ' ');
    world.receive(Tensor(part.data(), DType::u8, {size}), rank).wait();
    parts.push_back(std::move(part));
  }
  write_file_atomically(posix_file_system(), file, to_chrome_trace(parts));
}

}  // namespace transxssm
