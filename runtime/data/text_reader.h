// Streams documents out of text and JSONL files, plain, gzip or zstd (told by their first bytes), as valid
// UTF-8, in memory that does not grow with the input. A byte order mark at the start of a file is left out.
//
// A text document longer than a piece is cut where no supported pre-tokenizer can join the two sides and an
// added space changes nothing: before a space that follows an ASCII letter or digit; failing that, after a
// lone newline between two characters that are not spaces. Where the reader knows the tokenizer, no added
// token lies across a cut either. The ids of the pieces, one after the other, are then the ids of the whole.
// Where 16 MiB hold no such place the cut is made between any two characters and counted in `unsafe_cuts()`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

class Tokenizer;

struct TextReaderOptions {
  std::vector<std::string> inputs = {};
  std::string separator =
      {};                  // text files: documents end at this string, which is dropped; empty: one a file
  std::string field = {};  // not empty: JSONL, the document is this string field of each line
  // U+FFFD for each ill-formed sequence, and for each half of a surrogate pair in JSONL; false: DataError
  // with the byte offset or the line and field.
  bool replace_invalid_utf8 = false;
  // JSONL: lines that are no JSON, have no such string field, or are too long are left out and counted;
  // false: DataError with the line.
  bool skip_bad_lines = false;
  const Tokenizer* tokenizer = nullptr;  // what the pieces are for, so that cuts change none of its ids
  int64_t piece_bytes = 1 << 20;
  size_t read_bytes = size_t{1} << 18;  // taken from a file at once
};

struct TextPiece {
  std::string text;
  bool ends_document = true;
};

class TextReader {
 public:
  static constexpr int64_t kMaxPiece = 16 << 20;
  static constexpr int64_t kMaxLine = 32 << 20;  // of JSONL, in bytes: a longer one is a DataError

  // Looks at every input, so that a missing one is reported before work begins.
  explicit TextReader(TextReaderOptions options);
  ~TextReader();
  // The next piece; false at the end. Documents without text are skipped. DataErrors name file and offset or
  // line.
  bool next(TextPiece& piece);

  int64_t bytes_read() const;    // of the files as stored, for a progress bar
  int64_t total_bytes() const;   // of all files as stored
  int64_t text_bytes() const;    // of the pieces handed out
  int64_t replacements() const;  // ill-formed sequences replaced
  int64_t skipped_lines() const;
  std::string first_skipped() const;  // file, line and reason
  int64_t unsafe_cuts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Where the text may be cut without changing its token ids (see above): the last such position in
// (0, min(window, text.size())), or 0. The bytes after the position are looked at as far as there are any; a
// reader lets Tokenizer::cut_context() of them follow the window.
size_t last_safe_cut(std::string_view text, size_t window = std::string_view::npos,
                     const Tokenizer* tokenizer = nullptr);

}  // namespace transxssm
