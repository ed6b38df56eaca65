// The tokenizer behind a pipe, for tokenizer.py. Documents come on stdin, each as a u32 length and its bytes.
//   tokenizer_tool encode FILE THREADS   per document a u32 count and i32 ids, to stdout
//   tokenizer_tool template FILE         the same with the special tokens of TemplateProcessing
//   tokenizer_tool decode FILE           per document (bytes of i32 ids) a u32 length and the text
//   tokenizer_tool rewrite FILE          the tokenizer.json as this program writes it
//   tokenizer_tool train SIZE gpt2|cl100k   the trained tokenizer.json, to stdout
#include <chrono>
#include <cstring>
#include <iostream>
#include <iterator>

#include "runtime/data/bpe_trainer.h"
#include "runtime/data/tokenizer.h"
#include "runtime/error.h"

namespace {

using namespace transxssm;

std::vector<std::string_view> documents_of(std::string_view input) {
  std::vector<std::string_view> documents;
  while (!input.empty()) {
    uint32_t length;
    std::memcpy(&length, input.data(), sizeof length);
    documents.push_back(input.substr(sizeof length, length));
    input.remove_prefix(sizeof length + length);
  }
  return documents;
}

void put(const void* data, size_t bytes, size_t count) {
  const auto header = static_cast<uint32_t>(count);
  std::cout.write(reinterpret_cast<const char*>(&header), sizeof header);
  std::cout.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

void put_ids(const std::vector<int32_t>& ids) {
  put(ids.data(), ids.size() * sizeof(int32_t), ids.size());
}

class Timer {
 public:
  ~Timer() {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
    std::cerr << fmt::format("{:.3f} s wall, {:.3f} s CPU\n", seconds.count(),
                             static_cast<double>(std::clock() - cpu_) / CLOCKS_PER_SEC);
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::clock_t cpu_ = std::clock();
};

int run(const std::vector<std::string>& args) {
  const std::string command = args.at(1);
  if (command == "rewrite") {
    std::cout << Tokenizer::load(args.at(2)).to_json();
    return 0;
  }
  std::cin.sync_with_stdio(false);
  const std::string input(std::istreambuf_iterator<char>(std::cin), {});
  const auto documents = documents_of(input);
  if (command == "train") {
    const Timer timer;
    const SplitPattern pattern = args.at(3) == "gpt2" ? SplitPattern::gpt2 : SplitPattern::cl100k;
    BpeTrainer trainer({.vocab_size = std::stoi(args.at(2)), .pattern = pattern});
    for (std::string_view document : documents) trainer.feed(document);
    std::cout << trainer.train().to_json();
    return 0;
  }
  const Tokenizer tokenizer = Tokenizer::load(args.at(2));
  if (command == "encode") {
    const Timer timer;
    for (const auto& ids : tokenizer.encode_batch(documents, std::stoi(args.at(3)))) put_ids(ids);
  } else if (command == "template") {
    for (std::string_view document : documents) put_ids(tokenizer.encode(document, true));
  } else if (command == "decode") {
    for (std::string_view document : documents) {
      std::vector<int32_t> ids(document.size() / sizeof(int32_t));
      std::memcpy(ids.data(), document.data(), ids.size() * sizeof(int32_t));
      const std::string text = tokenizer.decode(ids);
      put(text.data(), text.size(), text.size());
    }
  } else {
    throw UsageError("No such command: {}", command);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(std::vector<std::string>(argv, argv + argc));
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.code());
  }
}
