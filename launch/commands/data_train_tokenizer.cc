#include <fmt/format.h>

#include <algorithm>
#include <future>

#include "launch/commands/data.h"
#include "launch/commands/data_input.h"
#include "launch/progress_bar.h"
#include "runtime/data/bpe_trainer.h"
#include "runtime/data/tokenizer.h"
#include "runtime/error.h"
#include "runtime/format.h"
#include "runtime/log.h"
#include "runtime/output_file.h"
#include "runtime/unfinished_files.h"

namespace transxssm {
namespace {

// A tokenizer without an end of documents could not be used for training: one of the user's own tokens is it,
// or <|endoftext|> comes after them.
std::vector<std::string> special_tokens(std::vector<std::string> tokens) {
  const auto names = Tokenizer::end_of_document_names();
  const bool ends = std::any_of(tokens.begin(), tokens.end(), [&](const std::string& token) {
    return std::find(names.begin(), names.end(), token) != names.end();
  });
  if (!ends) tokens.emplace_back(names.front());
  return tokens;
}

int train_tokenizer(const Arguments& arguments) {
  const std::string output = arguments.text("--output");
  BpeTrainerOptions options;
  options.vocab_size = static_cast<int>(arguments.integer("--vocab-size", 257, 1 << 24));
  options.special_tokens = special_tokens(arguments.list("--special-token"));
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
  const std::string json = tokenizer.to_json();
  TRANSXSSM_CHECK(Tokenizer::from_json(json).to_json() == json, "the tokenizer reads back as another one");
  file.publish_text(json);
  fmt::print("{}: {} tokens, from {} of text in {} ({} distinct words)\n", output,
             format_count(tokenizer.vocab_size()), format_bytes(static_cast<double>(text_bytes)),
             format_duration(reading.seconds()), format_count(distinct));
  if (tokenizer.vocab_size() < options.vocab_size)
    log_warning("The text gives only {} of the {} tokens asked for: no pair of tokens is left.",
                format_count(tokenizer.vocab_size()), format_count(options.vocab_size));
  return 0;
}

}  // namespace

Command train_tokenizer_command() {
  return {.path = "data train-tokenizer",
          .summary = "trains a byte-level BPE tokenizer on text",
          .example =
              "transxssm data train-tokenizer --input corpus.txt --vocab-size 4096 --output tokenizer.json",
          .options = with_input(
              {{.name = "--vocab-size",
                .value = "N",
                .help = "tokens: special ones, 256 bytes, and merges",
                .required = true},
               {.name = "--output",
                .value = "FILE",
                .help = "tokenizer.json, as Hugging Face tokenizers read it",
                .required = true},
               {.name = "--special-token",
                .value = "TOKEN",
                .help = "never merged; ids from 0 in this order, then <|endoftext|> unless one of them "
                        "ends documents, such as [EOS] or </s>",
                .repeatable = true},
               {.name = "--pattern",
                .value = "NAME",
                .help = "how text is cut into words",
                .standard = "gpt2",
                .choices = {"gpt2", "cl100k"}},
               kOverwriteOption}),
          .run = train_tokenizer};
}

}  // namespace transxssm
