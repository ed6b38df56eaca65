// Trains a byte-level BPE vocabulary: the same merges as Hugging Face's BpeTrainer over the same documents.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/pretokenizer.h"
#include "runtime/data/tokenizer.h"

namespace transxssm {

struct BpeTrainerOptions {
  int vocab_size = 0;  // special tokens + 256 byte symbols + merges
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  SplitPattern pattern = SplitPattern::gpt2;
};

class BpeTrainer {
 public:
  // Throws UsageError when vocab_size is below special tokens + 256, or a special token is empty or twice
  // there.
  explicit BpeTrainer(BpeTrainerOptions options);
  BpeTrainer(const BpeTrainer&) = delete;
  BpeTrainer& operator=(const BpeTrainer&) = delete;
  ~BpeTrainer();

  // Counts the pieces of one whole document (valid UTF-8, else DataError with the byte offset). Memory grows
  // with the number of distinct pieces, not with the text.
  void feed(std::string_view document);
  int64_t num_bytes() const;
  int64_t num_distinct_pieces() const;

  // Merges the most frequent pair (ties: the smaller pair of ids) until the vocabulary is full or no pair is
  // left; fewer tokens than asked for is no error. `progress(vocabulary so far, target)` is called now and
  // then. The counted pieces are used up: call once.
  Tokenizer train(const std::function<void(int, int)>& progress = {});

 private:
  struct Counter;
  BpeTrainerOptions options_;
  std::unique_ptr<Counter> counter_;
};

}  // namespace transxssm
