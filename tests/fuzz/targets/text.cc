// Text and JSONL: a byte of options, a byte for the length of a piece, then the file. However it is read and
// cut into pieces, the documents are the same.
#include "runtime/data/text_reader.h"

#include <algorithm>

#include "runtime/data/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {
namespace {

std::vector<std::string> documents(TextReaderOptions options, int64_t piece_bytes) {
  options.piece_bytes = piece_bytes;
  options.read_bytes = static_cast<size_t>(std::min<int64_t>(piece_bytes, 4096));
  TextReader reader(std::move(options));
  std::vector<std::string> list;
  bool open = false;
  for (TextPiece piece; reader.next(piece);) {
    fuzz::expect(valid_utf8_prefix(piece.text) == piece.text.size(), "a piece that is not UTF-8");
    if (open)
      list.back() += piece.text;
    else
      list.push_back(piece.text);
    open = !piece.ends_document;
  }
  fuzz::expect(!open, "the last document does not end");
  return list;
}

}  // namespace

FUZZ_TARGET(text, 1024) {
  fuzz::Bytes bytes(input);
  const uint8_t choice = bytes.byte();
  const int64_t piece_bytes = 4 + bytes.byte();
  TextReaderOptions options;
  options.replace_invalid_utf8 = (choice & 1) != 0;
  switch (choice >> 1 & 3) {
    case 0:
      break;
    case 1:
      options.field = "text";
      break;
    case 2:
      options.separator = "\n\n";
      break;
    default:
      options.separator = "<end>";
  }
  options.inputs = {fuzz::real_file("text", bytes.rest())};
  const auto whole = fuzz::attempt([&] { return documents(options, 1 << 16); });
  const auto cut = fuzz::attempt([&] { return documents(options, piece_bytes); });
  fuzz::expect(whole == cut, "documents depend on the length of pieces");
}

}  // namespace transxssm
