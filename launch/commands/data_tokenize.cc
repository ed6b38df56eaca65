#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <thread>

#include "launch/commands/data.h"
#include "launch/commands/data_input.h"
#include "launch/progress_bar.h"
#include "runtime/data/token_file.h"
#include "runtime/data/tokenizer.h"
#include "runtime/error.h"
#include "runtime/file_system.h"
#include "runtime/format.h"
#include "runtime/log.h"
#include "runtime/printable.h"
#include "runtime/unfinished_files.h"

namespace transxssm {
namespace {

constexpr int64_t kBatchBytes = 8 << 20;  // of text encoded at a time

// The id to end documents with, or -1.
int32_t end_of_document_of(const Tokenizer& tokenizer, const Arguments& arguments) {
  const std::string path = arguments.text("--tokenizer");
  if (arguments.has("--eod-token")) {
    const std::string name = arguments.text("--eod-token");
    const std::optional<int32_t> id = tokenizer.token_id(name);
    if (!id)
      throw DataError("{} has no added token \"{}\", which --eod-token names; see its added_tokens.", path,
                      printable(name));
    return *id;
  }
  if (!arguments.flag("--append-eod")) return -1;
  const std::optional<int32_t> id = tokenizer.end_of_document();
  if (!id)
    throw DataError(
        "{} has no token that is known to end documents ({}); name the one that does with --eod-token.", path,
        fmt::join(Tokenizer::end_of_document_names(), " "));
  return *id;
}

std::vector<TextPiece> read_batch(TextReader& reader) {
  std::vector<TextPiece> pieces;
  TextPiece piece;
  for (int64_t bytes = 0; bytes < kBatchBytes && reader.next(piece);) {
    bytes += static_cast<int64_t>(piece.text.size() + sizeof piece);
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

int tokenize(const Arguments& arguments) {
  const std::string output = arguments.text("--output");
  const std::string tokenizer_path = arguments.text("--tokenizer");
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_path);
  const int32_t end_of_document = end_of_document_of(tokenizer, arguments);
  const bool append_eod = end_of_document >= 0;
  int threads = static_cast<int>(arguments.integer("--threads", 0, 1024));
  if (threads == 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<char> special(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    special[static_cast<size_t>(id)] = tokenizer.is_special(id);

  TextReader reader(reader_options(arguments, &tokenizer));
  remove_unfinished_files_on_signals();
  std::vector<std::string> inputs = arguments.list("--input");
  inputs.push_back(tokenizer_path);
  TokenFileWriter writer(posix_file_system(), output, tokenizer.vocab_size(), arguments.flag("--overwrite"),
                         std::move(inputs));
  ProgressBar progress("Tokenizing", reader.total_bytes());
  int64_t specials_in_text = 0;
  for (std::vector<TextPiece> pieces = read_batch(reader); !pieces.empty();) {
    auto next = std::async(std::launch::async, [&] { return read_batch(reader); });
    const std::vector<std::string_view> texts = [&] {
      std::vector<std::string_view> views;
      for (const TextPiece& piece : pieces) views.push_back(piece.text);
      return views;
    }();
    const std::vector<std::vector<int32_t>> encoded = tokenizer.encode_batch(texts, threads);
    for (size_t i = 0; i < pieces.size(); ++i) {
      writer.add_tokens(encoded[i]);
      for (const int32_t id : encoded[i]) specials_in_text += special[static_cast<size_t>(id)];
      if (!pieces[i].ends_document) continue;
      if (append_eod) writer.add_tokens({&end_of_document, 1});
      writer.end_document();
    }
    pieces = next.get();
    progress.update(reader.bytes_read());
  }
  progress.finish();
  if (writer.num_tokens() == 0) throw DataError("The input has no text; nothing was written.");
  writer.finish({.text_bytes = reader.text_bytes(),
                 .end_of_document = end_of_document,
                 .tokenizer = std::filesystem::absolute(tokenizer_path).lexically_normal().string(),
                 .tokenizer_digest = tokenizer.digest()});

  report_reader(reader);
  const double seconds = progress.seconds();
  const auto bytes = static_cast<double>(reader.text_bytes());
  fmt::print("{}.bin, {}.idx: {} documents, {} tokens ({}) of {} text, {:.2f} bytes a token; {}, {}/s\n",
             output, output, format_count(writer.num_documents()), format_count(writer.num_tokens()),
             writer.token_bytes() == 2 ? "u16" : "i32", format_bytes(bytes),
             bytes / static_cast<double>(writer.num_tokens()), format_duration(seconds),
             format_bytes(bytes / seconds));
  if (specials_in_text > 0)
    log_warning("{} special tokens were written out in the text and became their ids.",
                format_count(specials_in_text));
  if (!append_eod && writer.num_documents() > 1)
    log_warning(
        "Documents end without an end-of-document token; pass --append-eod so that a model learns to stop.");
  return 0;
}

}  // namespace

Command tokenize_command() {
  return {
      .path = "data tokenize",
      .summary = "turns text into a token file for training",
      .example =
          "transxssm data tokenize --input corpus.jsonl.zst --field text --append-eod --tokenizer "
          "tokenizer.json --output data/corpus",
      .options = with_input(
          {{.name = "--tokenizer", .value = "FILE", .help = "tokenizer.json", .required = true},
           {.name = "--output",
            .value = "PREFIX",
            .help = "writes PREFIX.bin and PREFIX.idx (Megatron-LM's indexed dataset) and PREFIX.json; the "
                    "directory has to be there",
            .required = true},
           {.name = "--append-eod",
            .help = fmt::format("end each document with the first of these that is an added token: {}",
                                fmt::join(Tokenizer::end_of_document_names(), " "))},
           {.name = "--eod-token",
            .value = "TOKEN",
            .help = "end each document with this added token of the tokenizer"},
           {.name = "--threads", .value = "N", .help = "0: one a core", .standard = "0"},
           kOverwriteOption}),
      .run = tokenize};
}

}  // namespace transxssm
