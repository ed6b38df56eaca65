// PREFIX.idx beside a PREFIX.bin: two bytes say how long the latter is; its ids are 0, 1, 2, ...
#include "runtime/data/token_file.h"

#include <limits>

#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(token_file, 1024) {
  fuzz::Bytes bytes(input);
  std::string ids(bytes.number(2) % 8192, '\0');
  for (size_t i = 0; i + 1 < ids.size(); i += 2) ids[i] = static_cast<char>(i / 2);
  fuzz::real_file("tokens.bin", ids);
  const std::string index = fuzz::real_file("tokens.idx", bytes.rest());
  const TokenFile file(index.substr(0, index.size() - 4));

  std::vector<int32_t> all(static_cast<size_t>(file.num_tokens()));
  file.read(0, file.num_tokens(), all.data());
  int64_t length = 0;
  for (int64_t s = 0; s < file.num_sequences(); ++s) length += file.sequence_length(s);
  fuzz::expect(length == file.num_tokens(), "sequences do not make up the tokens");
  for (int64_t d = 0; d < file.num_documents(); ++d) {
    const int64_t begin = file.document_begin(d), end = file.document_begin(d + 1);
    fuzz::expect(begin <= end, "a document ends before it begins");
    if (begin < end)
      fuzz::expect(file.document_of(begin) == d && file.document_of(end - 1) == d,
                   "a token of another document");
  }
  fuzz::expect(file.document_begin(file.num_documents()) == file.num_tokens(),
               "tokens after the last document");
  const IdRange found = file.scan_ids(0, file.num_tokens());
  fuzz::attempt([&] { file.check_vocabulary(100); });
  if (found.low >= 0 && found.high < std::numeric_limits<int64_t>::max())
    file.check_vocabulary(found.high + 1);
}

}  // namespace transxssm
