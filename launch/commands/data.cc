#include "launch/commands/data.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <thread>

#include "launch/progress_bar.h"
#include "runtime/format.h"
#include "runtime/data/bpe_trainer.h"
#include "runtime/data/text_reader.h"
#include "runtime/data/token_file.h"
#include "runtime/data/tokenizer.h"
#include "runtime/data/utf8.h"
#include "runtime/error.h"
#include "runtime/file_system.h"
#include "runtime/log.h"
#include "runtime/output_file.h"
#include "runtime/unfinished_files.h"

namespace transxssm {
namespace {

constexpr int64_t kBatchBytes = 8 << 20;  // of text encoded at a time

std::vector<Option> input_options() {
  return {
      {.name = "--input",
       .value = "FILE...",
       .help = "text or JSONL; .gz and .zst too",
       .repeatable = true,
       .required = true,
       .group = "Input"},
      {.name = "--separator",
       .value = "TEXT",
       .help = "text that ends a document (\\n, \\t, \\\\ as in C); without it "
               "each file is one document",
       .group = "Input"},
      {.name = "--field",
       .value = "NAME",
       .help = "the input is JSONL; the document is this field of each line",
       .group = "Input"},
      {.name = "--invalid-utf8",
       .value = "ACTION",
       .help = "on bytes that are not UTF-8: stop, or put U+FFFD in their "
               "place",
       .standard = "error",
       .group = "Input",
       .choices = {"error", "replace"}},
  };
}

std::vector<Option> with_input(std::vector<Option> options) {
  std::vector<Option> all = input_options();
  all.insert(all.end(), options.begin(), options.end());
  return all;
}

// What a shell passes on as two characters.
std::string unescape(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const char next = text[i] == '\\' && i + 1 < text.size() ? text[i + 1] : '\0';
    if (next == 'n' || next == 't' || next == '\\') {
      result += next == 'n' ? '\n' : next == 't' ? '\t' : '\\';
      ++i;
    } else {
      result += text[i];
    }
  }
  return result;
}

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

TextReaderOptions reader_options(const Arguments& arguments) {
  return {.inputs = arguments.list("--input"),
          .separator = unescape(arguments.text("--separator")),
          .field = arguments.text("--field"),
          .replace_invalid_utf8 = arguments.text("--invalid-utf8") == "replace"};
}

// Says what happened to the text on its way in.
void report_reader(const TextReader& reader) {
  if (reader.replacements() > 0)
    log_warning("{} invalid UTF-8 sequences were replaced by U+FFFD.", format_count(reader.replacements()));
  if (reader.unsafe_cuts() > 0)
    log_warning("{} places without a word or line end in {} MiB were cut between characters.",
                reader.unsafe_cuts(), TextReader::kMaxPiece >> 20);
}

int train_tokenizer(const Arguments& arguments) {
  const std::string output = arguments.text("--output");
  BpeTrainerOptions options;
  options.vocab_size = static_cast<int>(arguments.integer("--vocab-size", 257, 1 << 24));
  options.special_tokens = arguments.list("--special-token");
  options.pattern = arguments.text("--pattern") == "cl100k" ? SplitPattern::cl100k : SplitPattern::gpt2;
  BpeTrainer trainer(options);

  TextReader reader(reader_options(arguments));
  remove_unfinished_files_on_signals();
  OutputFiles file(posix_file_system(), {output},
                   {.overwrite = arguments.flag("--overwrite"), .inputs = arguments.list("--input")});
  ProgressBar reading("Counting words", reader.total_bytes());
  // The next piece is read and decompressed while this one is counted.
  const auto read = [&] {
    TextPiece piece;
    return reader.next(piece) ? std::move(piece.text) : std::string();
  };
  for (std::string text = read(); !text.empty();) {
    auto next = std::async(std::launch::async, read);
    trainer.feed(text);
    text = next.get();
    reading.update(reader.bytes_read());
  }
  reading.finish();
  const int64_t text_bytes = trainer.num_bytes(),
                distinct = trainer.num_distinct_pieces();  // train() uses them up
  if (text_bytes == 0) throw DataError("The input has no text; nothing to train a tokenizer on.");
  report_reader(reader);

  ProgressBar merging("Merging pairs", options.vocab_size, ProgressBar::Unit::items);
  const Tokenizer tokenizer = trainer.train([&](int done, int) { merging.update(done); });
  merging.finish();
  file.publish_text(tokenizer.to_json());
  fmt::print("{}: {} tokens, from {} of text in {} ({} distinct words)\n", output,
             format_count(tokenizer.vocab_size()), format_bytes(static_cast<double>(text_bytes)),
             format_duration(reading.seconds()), format_count(distinct));
  if (tokenizer.vocab_size() < options.vocab_size)
    log_warning("The text gives only {} of the {} tokens asked for: no pair of tokens is left.",
                format_count(tokenizer.vocab_size()), format_count(options.vocab_size));
  return 0;
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
  const bool append_eod = arguments.flag("--append-eod");
  if (append_eod && !tokenizer.end_of_document())
    throw DataError("{} has no end-of-document token (such as <|endoftext|>), which --append-eod needs.",
                    tokenizer_path);
  const int32_t end_of_document = append_eod ? *tokenizer.end_of_document() : -1;
  int threads = static_cast<int>(arguments.integer("--threads", 0, 1024));
  if (threads == 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<char> special(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    special[static_cast<size_t>(id)] = tokenizer.is_special(id);

  TextReader reader(reader_options(arguments));
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
                 .tokenizer = std::filesystem::absolute(tokenizer_path).lexically_normal().string()});

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

int inspect(const Arguments& arguments) {
  const TokenFile file(arguments.text("PREFIX"));
  const std::optional<TokenFileFacts>& facts = file.facts();
  std::string tokenizer_path = arguments.text("--tokenizer");
  if (tokenizer_path.empty() && facts && posix_file_system().exists(facts->tokenizer))
    tokenizer_path = facts->tokenizer;
  std::optional<Tokenizer> tokenizer;
  if (!tokenizer_path.empty()) {
    tokenizer = Tokenizer::load(tokenizer_path);
    file.check_vocabulary(tokenizer->vocab_size());
  }

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
  row("dtype", file.token_bytes() == 2 ? "u16" : "i32");
  row("maximum id", std::to_string(file.scan_max_token_id()));
  if (facts) {
    row("text", fmt::format("{} bytes, {:.3f} a token", format_count(facts->text_bytes),
                            static_cast<double>(facts->text_bytes) /
                                static_cast<double>(std::max<int64_t>(1, file.num_tokens()))));
    row("document end",
        facts->end_of_document < 0 ? "no token" : fmt::format("id {}", facts->end_of_document));
  }
  row("tokenizer", tokenizer ? fmt::format("{} ({} ids)", tokenizer_path, tokenizer->vocab_size())
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

std::vector<Command> data_commands() {
  const Option overwrite = {.name = "--overwrite", .help = "replace what is there"};
  return {
      {.path = "data train-tokenizer",
       .summary = "trains a byte-level BPE tokenizer on text",
       .example =
           "transxssm data train-tokenizer --input corpus.txt --vocab-size 4096 --output tokenizer.json",
       .options = with_input({{.name = "--vocab-size",
                               .value = "N",
                               .help = "tokens: special ones, 256 bytes, and merges",
                               .required = true},
                              {.name = "--output",
                               .value = "FILE",
                               .help = "tokenizer.json, as Hugging Face tokenizers read it",
                               .required = true},
                              {.name = "--special-token",
                               .value = "TOKEN",
                               .help = "never merged; ids from 0 in this order",
                               .standard = "<|endoftext|>",
                               .repeatable = true},
                              {.name = "--pattern",
                               .value = "NAME",
                               .help = "how text is cut into words",
                               .standard = "gpt2",
                               .choices = {"gpt2", "cl100k"}},
                              overwrite}),
       .run = train_tokenizer},
      {.path = "data tokenize",
       .summary = "turns text into a token file for training",
       .example = "transxssm data tokenize --input corpus.jsonl.zst --field text --append-eod --tokenizer "
                  "tokenizer.json "
                  "--output data/corpus",
       .options = with_input(
           {{.name = "--tokenizer", .value = "FILE", .help = "tokenizer.json", .required = true},
            {.name = "--output",
             .value = "PREFIX",
             .help = "writes PREFIX.bin and PREFIX.idx (Megatron-LM's indexed "
                     "dataset) and PREFIX.json",
             .required = true},
            {.name = "--append-eod", .help = "end each document with the tokenizer's end-of-document token"},
            {.name = "--threads", .value = "N", .help = "0: one a core", .standard = "0"},
            overwrite}),
       .run = tokenize},
      {.path = "data inspect",
       .summary = "shows what is in a token file, after checking all of it",
       .example = "transxssm data inspect data/corpus",
       .options = {{.name = "--tokenizer",
                    .value = "FILE",
                    .help = "shows text; default: the one the file was made with"},
                   {.name = "--rows", .value = "N", .help = "documents to show", .standard = "5"},
                   {.name = "--tokens", .value = "N", .help = "tokens to show of each", .standard = "64"}},
       .positionals = {{.name = "PREFIX", .help = "of PREFIX.bin and PREFIX.idx"}},
       .run = inspect},
  };
}

}  // namespace transxssm
