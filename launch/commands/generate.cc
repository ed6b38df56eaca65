#include "launch/commands/generate.h"

#include <fmt/format.h>

#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "launch/checkpoint_path.h"
#include "launch/device.h"
#include "launch/generator.h"
#include "launch/standard_streams.h"
#include "launch/worker.h"
#include "runtime/data/tokenizer.h"
#include "runtime/data/utf8.h"

namespace transxssm {
namespace {

// Prints bytes as they come, holding back the last ones while they may be half of a code point.
class Utf8Printer {
 public:
  void print(std::string_view bytes) {
    pending_ += bytes;
    size_t whole = pending_.size();
    for (size_t back = 1; back <= std::min<size_t>(3, pending_.size()); ++back) {
      const auto byte = static_cast<unsigned char>(pending_[pending_.size() - back]);
      if ((byte & 0xC0) == 0x80) continue;  // inside a code point
      const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
      if (length > back) whole = pending_.size() - back;
      break;
    }
    std::string text = pending_.substr(0, whole);
    replace_ill_formed(text);
    std::fwrite(text.data(), 1, text.size(), stdout);
    flush_standard_output();
    pending_.erase(0, whole);
  }

 private:
  std::string pending_;
};

int generate(const Arguments& arguments, Worker& worker) {
  FileSystem& files = posix_file_system();
  const std::string path =
      named_checkpoint(worker.world(), files, arguments.text("--checkpoint"), checkpoints_of_run);
  const LoadedCheckpoint manifest = read_manifest(worker.world(), files, path);
  if (manifest.text.tokenizer_json.empty())
    throw UsageError("{} was trained without data.tokenizer: there is nothing to turn text into tokens with",
                     path);
  const Tokenizer tokenizer =
      Tokenizer::from_json(manifest.text.tokenizer_json, path + "/run/tokenizer.json");
  const ModelConfig config = model_config_from_text(manifest.text.model_config);
  if (const auto mistakes = problems(config); !mistakes.empty())
    throw CheckpointError("{}: its model configuration is wrong: {}", path, fmt::join(mistakes, "; "));
  if (tokenizer.vocab_size() > config.vocab_size)
    throw CheckpointError("{}: its tokenizer has {} tokens, its model {}", path, tokenizer.vocab_size(),
                          config.vocab_size);

  MeshShape shape{.pp = static_cast<int>(arguments.integer("--pp", 1)), .tp = 1};
  shape.tp =
      arguments.has("--tp") ? static_cast<int>(arguments.integer("--tp", 1)) : worker.size() / shape.pp;
  check_mesh(shape, worker.size());
  for (const std::string& problem : mesh_problems(config, shape.pp, shape.tp))
    throw UsageError("{}", problem);

  const std::vector<std::string> texts = arguments.list("--prompt");
  std::vector<std::vector<int32_t>> prompts;
  size_t longest = 0;
  for (const std::string& text : texts) {
    std::vector<int32_t>& prompt = prompts.emplace_back(tokenizer.encode(text));
    if (prompt.empty()) prompt.push_back(tokenizer.end_of_document().value_or(0));  // where a document begins
    longest = std::max(longest, prompt.size());
  }
  const int64_t count = arguments.integer("--max-tokens", 1, 1 << 24);
  Stream stream(choose_device(arguments.text("--device"), worker.local_rank()),
                worker.take_threads(0, false));
  use_device_of(stream, worker);
  Generator generator(config, shape, worker.world(), stream, static_cast<int64_t>(prompts.size()),
                      static_cast<int64_t>(longest) + count,
                      stream.device().is_cpu() ? Precision::f32() : Precision::bf16());
  load_checkpoint(worker.world(), files, path, generator.checkpoint_tensors());
  generator.weights_were_loaded();

  const SamplingOptions sampling{.temperature = arguments.number("--temperature", 0, 100),
                                 .top_p = arguments.number("--top-p", 1e-6, 1),
                                 .seed = static_cast<uint64_t>(arguments.integer("--seed", 0))};
  // One text is printed as it comes, several when all are done.
  const bool prints = worker.rank() == 0, streams = prints && texts.size() == 1;
  std::vector<std::string> answers = texts;
  Utf8Printer printer;
  if (streams) printer.print(texts.front());
  generator.generate(prompts, count, sampling, [&](int64_t row, int32_t token) {
    if (token == tokenizer.end_of_document()) return false;
    if (!tokenizer.has_token(token))
      return true;  // the model may have more ids than the tokenizer, which may have holes
    answers[static_cast<size_t>(row)] += tokenizer.token_bytes(token);
    if (streams) printer.print(tokenizer.token_bytes(token));
    return true;
  });
  if (streams) std::printf("\n");
  for (size_t i = 0; prints && !streams && i < answers.size(); ++i) {
    replace_ill_formed(answers[i]);
    std::printf("%s--- %zu\n%s\n", i > 0 ? "\n" : "", i + 1, answers[i].c_str());
  }
  return 0;
}

}  // namespace

Command generate_command() {
  return {.path = "generate",
          .summary = "Continue a text with a trained model, on one rank or several",
          .example = "transxssm generate --checkpoint runs/tiny --prompt 'The meaning of' --max-tokens 100",
          .options =
              {{.name = "--checkpoint", .value = "DIR", .help = kCheckpointHelp, .required = true},
               {.name = "--prompt",
                .value = "TEXT",
                .help = "empty: the start of a document; several are continued together",
                .standard = "",
                .repeatable = true},
               {.name = "--max-tokens", .value = "N", .help = "tokens to add at most", .standard = "128"},
               {.name = "--temperature",
                .value = "X",
                .help = "0: always the likeliest token",
                .standard = "0.8"},
               {.name = "--top-p",
                .value = "X",
                .help = "draw from the likeliest tokens that reach this probability together",
                .standard = "0.95"},
               {.name = "--seed", .value = "N", .help = "the same seed draws the same text", .standard = "0"},
               {.name = "--device",
                .value = "auto|cpu|cuda|cuda:N",
                .help = "auto: a GPU where there is one; cuda: the ranks of a host take its GPUs in turn",
                .standard = "auto"},
               {.name = "--tp", .value = "N", .help = "tensor parallel; default: all ranks", .group = "Mesh"},
               {.name = "--pp", .value = "N", .help = "pipeline stages", .standard = "1", .group = "Mesh"}},
          .run =
              [](const Arguments& arguments) {
                return run_worker([&](Worker& worker) { return generate(arguments, worker); });
              },
          .parallel = true};
}

}  // namespace transxssm
