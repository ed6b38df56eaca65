#include "launch/trace_file.h"

#include <utility>

#include "launch/option_output.h"

namespace transxssm {

std::unique_ptr<OutputFiles> open_trace(const std::string& path, bool overwrite,
                                        std::vector<std::string> inputs) {
  return option_output(path, overwrite || begins_with(path, to_chrome_trace({}).substr(0, 20)),
                       std::move(inputs));
}

void write_trace(OutputFiles* file, const std::vector<TraceEvent>& events, Communicator& world,
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
  file->publish_text(to_chrome_trace(parts));
}

}  // namespace transxssm
