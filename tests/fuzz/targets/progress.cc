// The records of two ranks that the others read: files in a directory that jobs may share. A first byte says
// whether a record is filled up to its length; the halves of the rest are the two.
#include "launch/progress.h"

#include "runtime/printable.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(progress, 2048) {
  constexpr size_t kEnough = 1024;  // bytes of a record, or more
  fuzz::Bytes bytes(input);
  const bool fill = bytes.byte() % 2 == 0;
  const std::string_view rest = bytes.rest();
  std::string path;
  for (const size_t rank : {size_t{0}, size_t{1}}) {
    std::string record(rest.substr(rank * (rest.size() / 2), rest.size() / 2));
    if (fill) record.resize(std::max(record.size(), kEnough));
    path = fuzz::real_file(fmt::format("progress-rank-{}", rank), record);
  }
  const auto records = read_progress(path.substr(0, path.rfind('/')), 2);
  fuzz::check_refusal(CommunicationError("{}", progress_table(records)));
  for (const Progress& record : records)
    fuzz::expect(printable_message(record.message) == record.message, "a message that cannot be shown");
}

}  // namespace transxssm
