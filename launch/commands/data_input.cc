#include "launch/commands/data_input.h"

#include "runtime/data/separator.h"
#include "runtime/error.h"
#include "runtime/format.h"
#include "runtime/log.h"

namespace transxssm {

std::vector<Option> with_input(std::vector<Option> options) {
  std::vector<Option> all = {
      {.name = "--input",
       .value = "FILE...",
       .help = "text or JSONL; gzip and zstd too",
       .repeatable = true,
       .required = true,
       .group = "Input"},
      {.name = "--separator",
       .value = "TEXT",
       .help = "text that ends a document (\\n, \\r, \\f, \\x1e, \\u2029, \\\\ as in C); without it each "
               "file is one "
               "document",
       .group = "Input"},
      {.name = "--field",
       .value = "NAME",
       .help = "the input is JSONL; the document is this field of each line",
       .group = "Input"},
      {.name = "--skip-bad-lines",
       .help = "leave out and count lines that are no JSON, lack a string in that field, or are too long",
       .group = "Input"},
      {.name = "--invalid-utf8",
       .value = "ACTION",
       .help = "on bytes that are not UTF-8, and halves of surrogate pairs in JSON: stop, or put U+FFFD in "
               "their place",
       .standard = "error",
       .group = "Input",
       .choices = {"error", "replace"}},
  };
  all.insert(all.end(), options.begin(), options.end());
  return all;
}

TextReaderOptions reader_options(const Arguments& arguments, const Tokenizer* tokenizer) {
  if (arguments.flag("--skip-bad-lines") && !arguments.has("--field"))
    throw UsageError("--skip-bad-lines is for JSONL; name its text with --field.");
  if (arguments.has("--field") && arguments.text("--field").empty())
    throw UsageError("--field is empty; give the name of the field with the text.");
  return {.inputs = arguments.list("--input"),
          .separator = arguments.has("--separator") ? parse_separator(arguments.text("--separator")) : "",
          .field = arguments.text("--field"),
          .replace_invalid_utf8 = arguments.text("--invalid-utf8") == "replace",
          .skip_bad_lines = arguments.flag("--skip-bad-lines"),
          .tokenizer = tokenizer};
}

void report_reader(const TextReader& reader) {
  if (reader.replacements() > 0)
    log_warning("{} invalid UTF-8 sequences were replaced by U+FFFD.", format_count(reader.replacements()));
  if (reader.skipped_lines() > 0)
    log_warning("{} bad lines were left out; the first: {}.", format_count(reader.skipped_lines()),
                reader.first_skipped());
  if (reader.unsafe_cuts() > 0)
    log_warning("{} places without a word or line end in {} MiB were cut between characters.",
                reader.unsafe_cuts(), TextReader::kMaxPiece >> 20);
}

}  // namespace transxssm
