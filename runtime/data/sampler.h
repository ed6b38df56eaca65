// Which tokens row r of step s holds: a pure function of (seed, sample number), with no cache and no state,
// so that every mesh and every resumed run reads the same rows. Row r of step s is sample s * global_batch +
// r.
//
// A source is cut into samples of T+1 tokens with stride T (neighbours share one token: a target of one, an
// input of the next). Each epoch of a source starts the cut at another random offset in [0, T) and visits the
// samples in another random order, each exactly once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/data/batch.h"
#include "runtime/data/blend.h"
#include "runtime/data/token_file.h"

namespace transxssm {

struct DataSource {
  std::string prefix = {};  // of PREFIX.bin, PREFIX.idx
  double weight = 1;        // share of the samples, relative to the others
  // The opened file, its ids checked already; null: to be opened and checked.
  std::shared_ptr<const TokenFile> file = {};
};

// A contiguous range of documents of a token file.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// Tokens of the documents before (training) and after (validation) the cut: the last round(D * fraction)
// documents, at least one, are for validation, but never all that have tokens, nor only such as have none.
// DataError where fewer than two documents have tokens, or none at fraction 0, where all are for training.
struct DocumentSplit {
  TokenRange training, validation;
};
DocumentSplit split_documents(const TokenFile& file, double validation_fraction);

struct TrainingDataSpec {
  std::vector<DataSource> sources = {};
  double validation_fraction = 0;  // of each source's documents, kept out of training
  uint64_t seed = 0;
  int64_t tokens = 0;      // T
  int64_t vocab_size = 0;  // every id must be below
  // true: positions restart and the document number rises at each document start. false: a row is one
  // document.
  bool pack_documents = true;
  // Whether the first token of a document counts as the target of the previous document's last token.
  bool score_document_starts = false;
};

class TrainingData {
 public:
  // Opens and checks all sources.
  explicit TrainingData(const TrainingDataSpec& spec);

  // Row i of `batch` becomes sample first_sample + i. Thread-safe. DataError for an id outside the
  // vocabulary.
  void fill(int64_t first_sample, const Batch& batch) const;
  // Asks the system to fetch what fill() of these samples will read; does not wait and takes no memory.
  void prefetch(int64_t first_sample, int64_t rows) const;

  const Blend& blend() const { return blend_; }
  int64_t num_tokens() const;         // of the training split, all sources
  int64_t samples_per_epoch() const;  // sum of the sources' samples
  // Hash of the indices of all sources, their weights and the split, for the check of a resumed run.
  uint64_t digest() const { return digest_; }

 private:
  struct Source {
    std::shared_ptr<const TokenFile> file;
    TokenRange range;
    int64_t samples;  // of one epoch
    int64_t offsets;  // number of offsets at which the cut may start
  };
  struct Place {
    const Source* source;
    int64_t begin;  // its first token in the file
  };
  Place place_of(int64_t sample) const;
  TrainingDataSpec spec_;
  std::vector<Source> sources_;
  Blend blend_;
  uint64_t digest_ = 0;
};

struct ValidationSpec {
  std::vector<DataSource> sources = {};
  double fraction = 0;  // the last part of the documents of each; 0: all of them
  int64_t tokens = 0;   // T
  int64_t vocab_size = 0;
  int32_t end_of_document = 0;  // of sources that do not say with which id theirs end
  bool pack_documents = true;
  bool score_document_starts = true;
};

// Every token of every source once as a target, in order: the targets of row r of a source are tokens rT ..
// rT+T-1 of its stream, its inputs the tokens before them; the source's end-of-document id stands before the
// first. The rest of a source's last row is not valid.
class ValidationSet {
 public:
  explicit ValidationSet(const ValidationSpec& spec);
  int num_sources() const { return static_cast<int>(sources_.size()); }
  const std::string& prefix(int source) const { return sources_[static_cast<size_t>(source)].file->prefix(); }
  double share(int source) const { return sources_[static_cast<size_t>(source)].share; }  // by weight
  int64_t num_rows() const;                                                               // of all sources
  int64_t num_tokens() const;
  // How many rows of each source, from its first on, stand for the blend in a sample of `rows` rows: by
  // weight, at least one of each, no more than it has. A smaller sample is part of a larger one.
  std::vector<int64_t> choose(int64_t rows) const;
  // Row i of `batch` becomes that row of the source. DataError for an id outside the vocabulary.
  void fill(int source, int64_t row, const Batch& batch, int64_t i) const;
  void fill_nothing(const Batch& batch, int64_t i) const;  // a row without a valid target

 private:
  struct Source {
    std::shared_ptr<const TokenFile> file;
    TokenRange range;
    int64_t rows;
    double share;
    int32_t end_of_document;
  };
  ValidationSpec spec_;
  std::vector<Source> sources_;
};

// Bytes of text of the valid targets of row i: the divisor of bits per byte. bytes_of_id: [V].
int64_t text_bytes(std::span<const int32_t> bytes_of_id, const Batch& batch, int64_t i);

}  // namespace transxssm
