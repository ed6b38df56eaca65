// The text of a pipeline schedule.
#include "parallel/schedule.h"

#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(schedule, 512) {
  const Schedule schedule = parse_schedule(input);
  fuzz::expect(parse_schedule(to_string(schedule)) == schedule, "a schedule written again is another");
  if (!fuzz::attempt([&] { return validate(schedule); })) return;
  const auto lowered = fuzz::attempt([&] { return lower(schedule); });
  if (lowered) fuzz::attempt([&] { return validate(*lowered); });
}

}  // namespace transxssm
