// A configuration of a run: textproto or JSON, told apart by a first brace. Lines after a NUL are overrides.
#include "launch/config.h"

#include "launch/run_length.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(config, 1024) {
  const std::string text(input.substr(0, input.find('\0')));
  std::vector<std::string> overrides;
  for (size_t at = text.size(); at < input.size() && overrides.size() < 8;) {
    const size_t end = std::min(input.find('\n', at + 1), input.size());
    overrides.emplace_back(input.substr(at + 1, end - at - 1));
    at = end;
  }
  const bool json = text.find_first_not_of("\xEF\xBB\xBF \n\t") != text.npos &&
                    text[text.find_first_not_of("\xEF\xBB\xBF \n\t")] == '{';
  const TrainConfig config = parse_config(text, json ? "c.json" : "c.textproto", overrides, 8);
  const std::string written = to_text(config);
  const auto again = fuzz::attempt([&] { return parse_config(written, "again.textproto", {}, 8); });
  fuzz::expect(again.has_value(), "a configuration that was accepted is refused when written again");
  fuzz::expect(to_text(*again) == written, "a configuration written again says something else");
  tokens_per_step(config);
  num_microbatches(config);
  settle_learning_rate(config, {});
}

}  // namespace transxssm
