// Token files: the indexed dataset of Megatron-LM, PREFIX.bin (token ids, nothing else) and PREFIX.idx (its
// sequences and documents), little-endian. Layout of .idx:
//   0 magic "MMIDIDX\0\0" (9 bytes)  9 u64 version 1  17 u8 dtype (TokenType)  18 u64 S  26 u64 D+1
//   34 i32 length[S] in tokens, i64 byte offset in .bin [S], i64 document[D+1] (first sequence of each
//   document)
// Facts of our own stand in an optional PREFIX.json, so that other readers see the two files they know.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/token_file_format.h"
#include "runtime/file_system.h"
#include "runtime/output_file.h"

namespace transxssm {

// What PREFIX.json says beside the counts. It is believed only where its counts and the digest fit the .idx.
struct TokenFileFacts {
  int64_t text_bytes = 0;             // bytes of the text the tokens stand for
  int32_t max_token_id = -1;          // -1: no tokens
  int64_t vocab_size = 0;             // of the tokenizer
  int32_t end_of_document = -1;       // the id appended to every document; -1: none
  std::string tokenizer = {};         // file the ids come from
  std::string tokenizer_digest = {};  // Tokenizer::digest(); empty in datasets of earlier versions
};

// Writes token files, streaming: memory does not grow with the number of tokens or documents. Nothing is
// visible under the final names before finish(); a crash leaves the old files or none.
class TokenFileWriter {
 public:
  // u16 ids where vocab_size < 65500, else i32, as Megatron-LM chooses. The three files follow the rule of
  // runtime/output_file.h; `inputs` are the files that the tokens are made from.
  TokenFileWriter(FileSystem& files, const std::string& prefix, int64_t vocab_size, bool overwrite,
                  std::vector<std::string> inputs = {});
  ~TokenFileWriter();  // removes the temporary files of a file that was not finished
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  void add_tokens(
      std::span<const int32_t> tokens);  // to the open sequence; DataError for an id outside [0, V)
  void end_sequence();                   // also an empty one
  // Ends the open sequence if it has tokens, then the document. A document may have no sequence at all.
  void end_document();
  // Publishes .bin, .json and last .idx. `facts.max_token_id` and `facts.vocab_size` are filled in here.
  void finish(TokenFileFacts facts);

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return num_documents_; }
  int64_t token_bytes() const { return token_bytes_; }
  int32_t max_token_id() const { return max_token_id_; }

 private:
  class Spool;
  FileSystem& files_;
  int64_t vocab_size_;
  int64_t token_bytes_;
  int32_t max_token_id_ = -1;
  int64_t num_tokens_ = 0;
  int64_t num_sequences_ = 0;
  int64_t num_documents_ = 0;
  int64_t sequence_tokens_ = 0;
  bool finished_ = false;
  std::unique_ptr<OutputFiles> outputs_;  // outlives the open files
  std::unique_ptr<Spool> bin_, lengths_, documents_;
};

// Lowest and highest id of some tokens; high < low where there are none.
struct IdRange {
  int64_t low = 0, high = -1;
};

// What opening found out at a cost: enough for others to open the same files without it.
struct TokenFileSummary {
  uint64_t digest = 0;
  int64_t num_tokens = 0;
  int64_t idx_bytes = 0, bin_bytes = 0;
  int64_t end_of_document = -1;
  bool operator==(const TokenFileSummary&) const = default;
};

// A memory-mapped pair of token files. Every field and array of .idx is checked at open against the
// definition and the sizes of both files; errors are DataErrors that name file, field, and what was expected.
// Readable from any number of threads.
class TokenFile {
 public:
  explicit TokenFile(const std::string& prefix);
  // Files that another process of this host has opened and checked a moment ago: touches the header of .idx
  // only, and knows no facts. DataError where they are no longer the same size.
  TokenFile(const std::string& prefix, const TokenFileSummary& checked);
  ~TokenFile();
  TokenFile(TokenFile&& other) noexcept;
  TokenFile& operator=(TokenFile&&) = delete;

  const std::string& prefix() const { return prefix_; }
  TokenType token_type() const { return type_; }
  std::string_view token_type_name() const;  // "u16"
  int64_t token_bytes() const { return token_bytes_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_sequences() const { return num_sequences_; }
  int64_t num_documents() const { return num_documents_; }
  uint64_t digest() const { return digest_; }  // 64-bit hash of the whole .idx
  // The id that its maker put behind every document; -1: none, or not known.
  int32_t end_of_document() const { return end_of_document_; }
  TokenFileSummary summary() const { return {digest_, num_tokens_, idx_.size, bin_.size, end_of_document_}; }
  const std::optional<TokenFileFacts>& facts() const { return facts_; }
  // Why a PREFIX.json that is there is not believed, for a warning; empty where it is, or is not ours.
  const std::string& facts_problem() const { return facts_problem_; }

  // Ids beyond 31 bits, which only i64 files can hold, read as -1: outside of every vocabulary.
  int32_t token(int64_t i) const;
  void read(int64_t begin, int64_t count, int32_t* out) const;  // tokens [begin, begin + count)
  // Asks the system to fetch tokens [begin, begin + count) from storage; does not wait for them.
  void prefetch(int64_t begin, int64_t count) const;
  // Token at which document d starts, d in [0, num_documents()]; the last is num_tokens().
  int64_t document_begin(int64_t d) const;
  // The document that holds token i, by bisection.
  int64_t document_of(int64_t i) const;
  int64_t sequence_length(int64_t s) const;

  // Of tokens [begin, begin + count), by reading them.
  IdRange scan_ids(int64_t begin, int64_t count) const;
  // Of all tokens, where that is known without reading them: by PREFIX.json, or by PREFIX.ids.json, which
  // remember_ids() writes for datasets that others made. Only for large files: reading small ones costs less
  // than finding a wrong id in the midst of a run (readers check the ids they read in any case).
  std::optional<IdRange> known_ids() const;
  // Leaves the range beside the data for later starts; where that cannot be written, nothing happens.
  void remember_ids(const IdRange& ids) const;
  // DataError naming document, position and id of the first token outside [0, vocab_size). Reads all tokens
  // but where known_ids() says enough.
  void check_vocabulary(int64_t vocab_size) const;
  // Likewise with the range of all tokens given; reads only to find the token at fault.
  void check_vocabulary(int64_t vocab_size, const IdRange& ids) const;
  // Throws that DataError for token i.
  [[noreturn]] void refuse_token(int64_t i, int64_t vocab_size) const;

 private:
  struct Mapping {
    const std::byte* data = nullptr;
    int64_t size = 0;
    int64_t modified_ns = 0;
    void open(const std::string& path);
    void close();
  };
  void open_files();
  void check_header();
  void check_sequences();
  void check_documents();
  void read_facts();
  int64_t id(int64_t i) const;              // as stored
  int64_t sequence_begin(int64_t s) const;  // in tokens; s in [0, S]

  std::string prefix_;
  Mapping idx_, bin_;
  TokenType type_ = TokenType::u16;
  int64_t token_bytes_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_sequences_ = 0;
  int64_t num_documents_ = 0;
  uint64_t digest_ = 0;
  int32_t end_of_document_ = -1;
  std::optional<TokenFileFacts> facts_;
  std::string facts_problem_;
};

}  // namespace transxssm
