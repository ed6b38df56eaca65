// Normalization form C of any valid text: valid, and the same when normalized again.
#include "runtime/data/nfc.h"

#include "runtime/data/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(nfc, 1024) {
  std::string text(input);
  replace_ill_formed(text);
  std::string buffer, second;
  const std::string once(nfc(text, buffer));
  fuzz::expect(valid_utf8_prefix(once) == once.size(), "NFC is not UTF-8");
  fuzz::expect(nfc(once, second) == once, "NFC of NFC is another text");
}

}  // namespace transxssm
