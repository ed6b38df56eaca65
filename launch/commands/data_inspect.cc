#include <fmt/format.h>

#include <algorithm>

#include "launch/commands/data.h"
#include "runtime/data/token_file.h"
#include "runtime/data/tokenizer.h"
#include "runtime/data/utf8.h"
#include "runtime/error.h"
#include "runtime/file_system.h"
#include "runtime/format.h"
#include "runtime/log.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

std::string escape(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '\n')
      result += "\\n";
    else if (c == '\t')
      result += "\\t";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      result += c;
  }
  return result;
}

// The tokenizer at `path`, or, where that is empty, the one that the dataset names, if it is still the same;
// `path` becomes its file.
std::optional<Tokenizer> tokenizer_of(const TokenFile& file, std::string& path) {
  const std::optional<TokenFileFacts>& facts = file.facts();
  const auto is_other = [&](const Tokenizer& tokenizer) {
    return facts && !facts->tokenizer_digest.empty() && facts->tokenizer_digest != tokenizer.digest();
  };
  if (!path.empty()) {
    Tokenizer tokenizer = Tokenizer::load(path);
    if (is_other(tokenizer))
      log_warning("{} was made with another tokenizer: {}, digest {}; {} has {}.", file.prefix(),
                  printable(facts->tokenizer), facts->tokenizer_digest, path, tokenizer.digest());
    return tokenizer;
  }
  if (!facts || !posix_file_system().exists(facts->tokenizer)) return std::nullopt;
  try {
    Tokenizer tokenizer = Tokenizer::load(facts->tokenizer);
    path = facts->tokenizer;
    if (!is_other(tokenizer)) return tokenizer;
    log_warning("{} is no longer the tokenizer that {} was made with (digest {}, then {}).", printable(path),
                file.prefix(), tokenizer.digest(), facts->tokenizer_digest);
  } catch (const DataError& error) {
    log_warning("The tokenizer that {} was made with cannot be used: {}", file.prefix(), error.what());
  }
  return std::nullopt;
}

int inspect(const Arguments& arguments) {
  const TokenFile file(arguments.text("PREFIX"));
  const std::optional<TokenFileFacts>& facts = file.facts();
  if (!file.facts_problem().empty()) log_warning("{}.", file.facts_problem());
  std::string tokenizer_path = arguments.text("--tokenizer");
  const std::optional<Tokenizer> tokenizer = tokenizer_of(file, tokenizer_path);
  const IdRange range = file.scan_ids(0, file.num_tokens());
  if (tokenizer) file.check_vocabulary(tokenizer->vocab_size(), range);

  int64_t shortest = file.num_tokens(), longest = 0;
  for (int64_t d = 0; d < file.num_documents(); ++d) {
    const int64_t length = file.document_begin(d + 1) - file.document_begin(d);
    shortest = std::min(shortest, length);
    longest = std::max(longest, length);
  }
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<16}{}\n", name, value); };
  row("dataset", file.prefix());
  row("documents", format_count(file.num_documents()));
  row("sequences", format_count(file.num_sequences()));
  row("tokens", format_count(file.num_tokens()));
  if (file.num_documents() > 0)
    row("document length",
        fmt::format("{} to {} tokens, mean {:.1f}", format_count(shortest), format_count(longest),
                    static_cast<double>(file.num_tokens()) / static_cast<double>(file.num_documents())));
  row("dtype", std::string(file.token_type_name()));
  row("maximum id", std::to_string(range.high));
  if (facts) {
    row("text", fmt::format("{} bytes, {:.3f} a token", format_count(facts->text_bytes),
                            static_cast<double>(facts->text_bytes) /
                                static_cast<double>(std::max<int64_t>(1, file.num_tokens()))));
    row("document end",
        facts->end_of_document < 0 ? "no token" : fmt::format("id {}", facts->end_of_document));
  }
  row("tokenizer", tokenizer ? fmt::format("{} ({} ids, digest {})", printable(tokenizer_path),
                                           tokenizer->vocab_size(), tokenizer->digest())
                             : "not given: ids are shown (--tokenizer FILE shows text)");
  row("digest", fmt::format("{:016x}", file.digest()));

  const int64_t rows = std::min(arguments.integer("--rows", 0), file.num_documents());
  for (int64_t d = 0; d < rows; ++d) {
    const int64_t begin = file.document_begin(d), length = file.document_begin(d + 1) - begin;
    std::vector<int32_t> ids(
        static_cast<size_t>(std::min(length, arguments.integer("--tokens", 1, 1 << 20))));
    file.read(begin, static_cast<int64_t>(ids.size()), ids.data());
    std::string text = tokenizer ? tokenizer->decode(ids) : fmt::format("{}", fmt::join(ids, " "));
    replace_ill_formed(text);  // a row may end inside a character
    fmt::print("\n[{}] {} tokens: {}{}\n", d, format_count(length), escape(text),
               static_cast<int64_t>(ids.size()) < length ? " ..." : "");
  }
  return 0;
}

}  // namespace

Command inspect_command() {
  return {.path = "data inspect",
          .summary = "shows what is in a token file, after checking all of it",
          .example = "transxssm data inspect data/corpus",
          .options = {{.name = "--tokenizer",
                       .value = "FILE",
                       .help = "shows text; default: the one the file was made with"},
                      {.name = "--rows", .value = "N", .help = "documents to show", .standard = "5"},
                      {.name = "--tokens", .value = "N", .help = "tokens to show of each", .standard = "64"}},
          .positionals = {{.name = "PREFIX", .help = "of PREFIX.bin and PREFIX.idx"}},
          .run = inspect};
}

}  // namespace transxssm
