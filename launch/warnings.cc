#include "launch/warnings.h"

#include <algorithm>
#include <array>
#include <vector>

#include "runtime/log.h"

namespace transxssm {
namespace {

using Text = std::array<char, kWarningBytes + 1>;  // the whole stands in the rank's log file

struct Warning {
  std::string text;
  int rank = 0;
  int others = 0;
};

void print(const std::vector<Text>& texts) {
  std::vector<Warning> warnings;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    const std::string text(texts[rank].data());
    if (text.empty()) continue;
    const auto same =
        std::find_if(warnings.begin(), warnings.end(), [&](const Warning& w) { return w.text == text; });
    if (same != warnings.end()) {
      ++same->others;
    } else if (note_warning(text)) {
      warnings.push_back({text, static_cast<int>(rank), 0});
    }
  }
  for (const Warning& w : warnings)
    log_for_all(LogLevel::warning, w.others == 0 ? fmt::format("rank {}: {}", w.rank, w.text)
                                                 : fmt::format("rank {} and {} other{}: {}", w.rank, w.others,
                                                               w.others == 1 ? "" : "s", w.text));
}

}  // namespace

void print_warnings_of_all(Communicator& world) {
  if (world.size() == 1) return;
  std::vector<std::string> mine = take_warnings();
  size_t next = 0;
  while (true) {
    double more = next < mine.size() ? 1 : 0;
    world.all_reduce(Tensor(&more, DType::f64, {1}), ReduceOp::max);
    if (more == 0) return;
    Text text = {};
    if (next < mine.size()) mine[next++].copy(text.data(), text.size() - 1);
    std::vector<Text> all(static_cast<size_t>(world.size()));
    const auto bytes = static_cast<int64_t>(text.size());
    world.all_gather(Tensor(text.data(), DType::u8, {bytes}),
                     Tensor(all.data(), DType::u8, {bytes * world.size()}));
    if (world.rank() == 0) print(all);
  }
}

}  // namespace transxssm
