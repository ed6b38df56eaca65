#include "runtime/data/text_reader.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/data/input_file.h"
#include "runtime/data/json_line.h"
#include "runtime/data/tokenizer.h"
#include "runtime/data/utf8.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr size_t kLookBack = 1 << 12;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_ascii_alnum(unsigned char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Whether the character that starts at (or ends before) a position is surely not white space. Characters
// whose first bytes Unicode's spaces share count as unsure.
bool surely_text(std::string_view text, size_t first) {
  const auto c = static_cast<unsigned char>(text[first]);
  if (c < 0x80) return c > ' ' && c != 0x7F;
  if (c == 0xC2 || c == 0xE1 || c == 0xE2 || c < 0xC0) return false;
  return c != 0xE3 || (first + 1 < text.size() && static_cast<unsigned char>(text[first + 1]) != 0x80);
}

size_t character_start(std::string_view text, size_t at) {
  size_t first = at;
  while (first > 0 && at - first < 3 && (static_cast<unsigned char>(text[first]) & 0xC0) == 0x80) --first;
  return first;
}

}  // namespace

size_t last_safe_cut(std::string_view text, size_t window, const Tokenizer* tokenizer) {
  if (text.size() < 3) return 0;
  const size_t last = std::min(window, text.size()) - 1;
  const auto allowed = [&](size_t at) { return tokenizer == nullptr || tokenizer->may_cut(text, at); };
  // Two passes backwards: the kind of place that suits every tokenizer first.
  for (size_t at = last; at >= 1; --at)
    if (text[at] == ' ' && is_ascii_alnum(static_cast<unsigned char>(text[at - 1])) && allowed(at)) return at;
  for (size_t at = last; at >= 2; --at)
    if (text[at - 1] == '\n' && surely_text(text, at) && surely_text(text, character_start(text, at - 2)) &&
        allowed(at))
      return at;
  return 0;
}

struct TextReader::State {
  TextReaderOptions options;
  size_t next_input = 0;
  std::unique_ptr<InputFile> file;
  std::string path;
  int64_t total_bytes = 0, finished_bytes = 0;
  int64_t text_bytes = 0, replacements = 0, unsafe_cuts = 0;
  int64_t skipped_lines = 0;
  std::string first_skipped;

  std::string buffer;  // content of the file not yet handed out starts at `begin`
  size_t begin = 0;
  int64_t offset = 0;  // of buffer[begin] in the content of the file
  int64_t line = 0;    // JSONL: lines read
  bool end_of_file = false;
  bool document_open = false;  // pieces of the document at hand were handed out
  std::string json_text;       // JSONL: the rest of the document at hand starts at json_begin
  size_t json_begin = 0;

  std::string_view rest() const { return std::string_view(buffer).substr(begin); }

  bool open_next() {
    if (next_input == options.inputs.size()) return false;
    path = options.inputs[next_input++];
    file = open_input(path, options.read_bytes);
    buffer.clear();
    begin = 0;
    offset = line = 0;
    end_of_file = false;
    fill(kByteOrderMark.size());
    if (rest().starts_with(kByteOrderMark)) advance(kByteOrderMark.size());
    return true;
  }

  void close() {
    finished_bytes += file->stored_offset();
    file.reset();
  }

  // Reads until `bytes` bytes are at hand or the file ends.
  void fill(size_t bytes) {
    if (begin > 0 && !end_of_file && buffer.size() - begin < bytes) {
      buffer.erase(0, begin);
      begin = 0;
    }
    while (!end_of_file && buffer.size() - begin < bytes) {
      const size_t held = buffer.size();
      buffer.resize(held + options.read_bytes);
      const size_t count = file->read(buffer.data() + held, options.read_bytes);
      buffer.resize(held + count);
      end_of_file = count == 0;
    }
  }

  std::string take(size_t bytes) {
    std::string text(buffer, begin, bytes);
    advance(bytes);
    return text;
  }

  void advance(size_t bytes) {
    begin += bytes;
    offset += static_cast<int64_t>(bytes);
  }

  // Makes `text`, which began at byte `at` of the file, well-formed, or says what is wrong.
  std::string utf8_problem(std::string& text, int64_t at) {
    const size_t good = valid_utf8_prefix(text);
    if (good == text.size()) return "";
    if (!options.replace_invalid_utf8)
      return fmt::format(
          "byte {} (0x{:02X}) is not valid UTF-8; convert the file, or pass --invalid-utf8 replace to put "
          "U+FFFD in place of such bytes",
          at + static_cast<int64_t>(good), static_cast<unsigned char>(text[good]));
    replacements += static_cast<int64_t>(replace_ill_formed(text));
    return "";
  }

  void check_utf8(std::string& text, int64_t at) {
    const std::string problem = utf8_problem(text, at);
    if (!problem.empty()) throw DataError("{}: {}.", path, problem);
  }

  // Bytes to hand out of a document whose text goes on beyond `window`; 0 where more must be looked at first.
  size_t cut(std::string_view text, size_t window) {
    const size_t safe = last_safe_cut(text, window, options.tokenizer);
    if (safe > 0 || window < static_cast<size_t>(kMaxPiece)) return safe;
    ++unsafe_cuts;
    // At least no added token is cut, unless a whole run of them fills the last bytes.
    const size_t end = character_start(text, window - 1);
    for (size_t at = end; options.tokenizer != nullptr && at > window - kLookBack;
         at = character_start(text, at - 1))
      if (!options.tokenizer->straddles(text, at)) return at;
    return end;
  }

  bool next_of_text(TextPiece& piece) {
    const std::string& separator = options.separator;
    // Where the end of the bytes at hand may be the start of a separator or of a token, no cut may fall.
    const size_t tail = std::max(separator.empty() ? 0 : separator.size() - 1, context());
    size_t scanned = 0;
    for (size_t window = static_cast<size_t>(options.piece_bytes);; window *= 2) {
      window = std::min(window, static_cast<size_t>(kMaxPiece));
      fill(window + tail);
      const std::string_view text = rest();
      const size_t end = separator.empty() ? text.npos : text.find(separator, scanned);
      if (end != text.npos && end <= window) return finish_document(piece, end, separator.size());
      if (end_of_file && end == text.npos && text.size() <= window) {
        const bool any = finish_document(piece, text.size(), 0);
        close();
        return any;
      }
      const size_t taken = cut(text, window);
      if (taken > 0) {
        const int64_t at = offset;
        piece = {take(taken), false};
        check_utf8(piece.text, at);
        document_open = true;
        return true;
      }
      scanned = window - std::min(window, tail);
    }
  }

  bool finish_document(TextPiece& piece, size_t bytes, size_t separator_bytes) {
    const int64_t at = offset;
    piece = {take(bytes), true};
    check_utf8(piece.text, at);
    advance(separator_bytes);
    const bool any = document_open || !piece.text.empty();
    document_open = false;
    return any;
  }

  size_t context() const { return options.tokenizer == nullptr ? 0 : options.tokenizer->cut_context(); }

  // Of a line of JSONL that cannot be used: its document is empty.
  void bad_line(const std::string& problem) {
    const std::string message = fmt::format("{}:{}: {}", path, line, problem);
    if (!options.skip_bad_lines)
      throw DataError("{}; mend the line, or pass --skip-bad-lines to leave such lines out.", message);
    if (skipped_lines++ == 0) first_skipped = message;
  }

  // Passes over the rest of a line that is too long to be held.
  void skip_line() {
    for (;;) {
      const size_t newline = rest().find('\n');
      advance(newline == std::string_view::npos ? rest().size() : newline + 1);
      if (newline != std::string_view::npos) return;
      fill(options.read_bytes);
      if (rest().empty()) return;
    }
  }

  // Moves the document of the next line to json_text; false at the end of the file.
  bool read_line() {
    json_text.clear();
    json_begin = 0;
    size_t newline = std::string_view::npos;
    for (size_t want = 1 << 16, scanned = 0;; want *= 2) {
      want = std::min(want, static_cast<size_t>(kMaxLine) + 1);
      fill(want);
      newline = rest().find('\n', scanned);
      if (newline != std::string_view::npos || end_of_file) break;
      scanned = rest().size();
      if (scanned > static_cast<size_t>(kMaxLine)) break;
    }
    if (rest().empty()) return false;
    ++line;
    const size_t length = newline == std::string_view::npos ? rest().size() : newline + 1;
    if (length > static_cast<size_t>(kMaxLine)) {
      bad_line(fmt::format("the line is longer than {} MiB; split the document", kMaxLine >> 20));
      skip_line();
      return true;
    }
    const int64_t at = offset;
    std::string text = take(length);
    if (const std::string problem = utf8_problem(text, at); !problem.empty()) {
      bad_line(problem);
      return true;
    }
    if (text.find_first_not_of(" \t\r\n") == text.npos) return true;
    JsonLine read = read_json_line(text, options.field, options.replace_invalid_utf8);
    if (!read.problem.empty()) bad_line(read.problem);
    replacements += read.replacements;
    json_text = std::move(read.text);
    return true;
  }

  bool next_of_json(TextPiece& piece) {
    if (json_begin == json_text.size()) {
      if (!read_line()) {
        close();
        return false;
      }
      if (json_text.empty()) return false;
    }
    const std::string_view text = std::string_view(json_text).substr(json_begin);
    size_t taken = text.size();
    for (auto window = static_cast<size_t>(options.piece_bytes); text.size() > window; window *= 2) {
      window = std::min(window, static_cast<size_t>(kMaxPiece));
      taken = cut(text, window);
      if (taken > 0) break;
      taken = text.size();
    }
    piece = {std::string(text.substr(0, taken)), taken == text.size()};
    json_begin += taken;
    return true;
  }
};

TextReader::TextReader(TextReaderOptions options) : state_(std::make_unique<State>()) {
  TRANSXSSM_CHECK(options.piece_bytes >= 4 && options.piece_bytes <= kMaxPiece, "pieces of {}",
                  options.piece_bytes);
  if (!options.field.empty() && !options.separator.empty())
    throw UsageError("--separator is for text and --field for JSONL; give one of them.");
  if (options.inputs.empty()) throw UsageError("There is no input file; give at least one with --input.");
  for (const std::string& path : options.inputs) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || ::access(path.c_str(), R_OK) != 0)
      throw DataError("Cannot read input {}: {}.", path, std::strerror(errno));
    if (S_ISDIR(info.st_mode)) throw DataError("Input {} is a directory; name its files.", path);
    state_->total_bytes += info.st_size;
    // A file of another kind is found before any work; what is in a pipe can be read only once.
    char first;
    if (S_ISREG(info.st_mode)) open_input(path, options.read_bytes)->read(&first, 1);
  }
  state_->options = std::move(options);
}

TextReader::~TextReader() = default;

bool TextReader::next(TextPiece& piece) {
  State& state = *state_;
  for (;;) {
    if (!state.file && !state.open_next()) return false;
    const bool got = state.options.field.empty() ? state.next_of_text(piece) : state.next_of_json(piece);
    if (!got) continue;
    state.text_bytes += static_cast<int64_t>(piece.text.size());
    return true;
  }
}

int64_t TextReader::bytes_read() const {
  return state_->finished_bytes + (state_->file ? state_->file->stored_offset() : 0);
}
int64_t TextReader::total_bytes() const {
  return state_->total_bytes;
}
int64_t TextReader::text_bytes() const {
  return state_->text_bytes;
}
int64_t TextReader::replacements() const {
  return state_->replacements;
}
int64_t TextReader::skipped_lines() const {
  return state_->skipped_lines;
}
std::string TextReader::first_skipped() const {
  return state_->first_skipped;
}
int64_t TextReader::unsafe_cuts() const {
  return state_->unsafe_cuts;
}

}  // namespace transxssm
