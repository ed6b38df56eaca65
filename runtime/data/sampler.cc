#include "runtime/data/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "runtime/crc32c.h"
#include "runtime/error.h"
#include "runtime/rng.h"

namespace transxssm {
namespace {

std::vector<double> weights_of(const std::vector<DataSource>& sources) {
  std::vector<double> weights;
  for (const DataSource& source : sources) weights.push_back(source.weight);
  return weights;
}

struct RowRules {
  int64_t vocab_size;
  bool pack_documents;
  bool score_document_starts;
};

// Writes row i of `batch` for the tokens [begin, begin + T + 1) of a file: inputs all but the last, targets
// all but the first. Tokens before range.begin read as `before` and are a document of their own; tokens from
// range.end on as well, and are no targets.
void fill_row(const TokenFile& file, const TokenRange& range, int64_t begin, int32_t before,
              const RowRules& rules, const Batch& batch, int64_t i) {
  const int64_t tokens = batch.tokens();
  int32_t* input = &batch.input.at<int32_t>({i, 0});
  int32_t* target = &batch.target.at<int32_t>({i, 0});
  int32_t* position = &batch.position.at<int32_t>({i, 0});
  int32_t* document = &batch.document.at<int32_t>({i, 0});
  uint8_t* valid = &batch.valid.at<uint8_t>({i, 0});

  std::fill_n(input, tokens, before);
  std::fill_n(target, tokens, before);
  std::fill_n(document, tokens, 0);
  std::fill_n(valid, tokens, uint8_t{0});
  for (int64_t j = 0; j < tokens; ++j) position[j] = static_cast<int32_t>(j);
  if (begin >= range.end) return;

  const int64_t from = std::max(begin, range.begin);               // begin >= range.begin - 1
  const int64_t to = std::clamp(begin + tokens, from, range.end);  // inputs inside the range: [from, to)
  file.read(from, to - from, input + (from - begin));
  for (int64_t t = from; t < to; ++t) {
    const int32_t id = input[t - begin];
    if (id < 0 || id >= rules.vocab_size) file.refuse_token(t, rules.vocab_size);
  }
  std::copy(input + 1, input + tokens, target);
  const int64_t last = begin + tokens;  // the one target that is no input
  if (last >= range.begin && last < range.end) {
    target[tokens - 1] = file.token(last);
    if (target[tokens - 1] < 0 || target[tokens - 1] >= rules.vocab_size)
      file.refuse_token(last, rules.vocab_size);
  }
  for (int64_t j = 0; j < tokens; ++j)
    valid[j] = begin + j + 1 >= range.begin && begin + j + 1 < range.end ? 1 : 0;

  if (!rules.pack_documents) return;
  // `next` is the first document start after the token at hand.
  int64_t d = file.document_of(from);
  const auto start_after = [&](int64_t t) {
    if (t < range.begin) return range.begin;
    while (d <= file.num_documents() && file.document_begin(d) <= t) {
      if (d == file.num_documents()) return last + 1;  // past the file: no further start
      ++d;
    }
    return file.document_begin(d);
  };
  int64_t next = start_after(begin);
  int32_t number = 0, place = 0;
  for (int64_t j = 0; j < tokens; ++j) {
    if (begin + j == next) {
      ++number;
      place = 0;
      next = start_after(next);
    }
    document[j] = number;
    position[j] = place++;
    if (begin + j + 1 == next && !rules.score_document_starts) valid[j] = 0;
  }
}

void check_rows(const Batch& batch, int64_t tokens) {
  TRANSXSSM_CHECK(batch.tokens() == tokens, "rows of {} tokens, made for {}", batch.tokens(), tokens);
}

}  // namespace

DocumentSplit split_documents(const TokenFile& file, double validation_fraction) {
  if (!(validation_fraction >= 0) || validation_fraction >= 1)
    throw UsageError("The validation fraction is {}; it must be at least 0 and less than 1.",
                     validation_fraction);
  const int64_t documents = file.num_documents();
  int64_t held_out = 0;
  if (validation_fraction > 0)
    held_out = std::max<int64_t>(1, std::llround(static_cast<double>(documents) * validation_fraction));
  const int64_t cut = documents > held_out ? file.document_begin(documents - held_out) : 0;
  const DocumentSplit split = {{0, cut}, {cut, file.num_tokens()}};
  if (split.training.size() == 0 || (held_out > 0 && split.validation.size() == 0))
    throw DataError(
        "{} has {} documents, too few to hold out a fraction of {} for validation; tokenize the text as "
        "several "
        "documents (--separator), or give a validation set of its own.",
        file.prefix(), documents, validation_fraction);
  return split;
}

TrainingData::TrainingData(const TrainingDataSpec& spec) : spec_(spec), blend_(weights_of(spec.sources)) {
  TRANSXSSM_CHECK(spec.tokens >= 1, "rows of {} tokens", spec.tokens);
  uint32_t hash = 0;
  uint64_t total = 0;
  const auto add = [&](uint64_t value) { hash = crc32c(std::as_bytes(std::span(&value, 1)), hash); };
  for (size_t i = 0; i < spec.sources.size(); ++i) {
    TokenFile file(spec.sources[i].prefix);
    file.check_vocabulary(spec.vocab_size);
    const TokenRange range = split_documents(file, spec.validation_fraction).training;
    if (range.size() <= spec.tokens)
      throw DataError(
          "{} has {} tokens for training, fewer than one sample of {} and its target; use a shorter "
          "sequence length or more text.",
          file.prefix(), range.size(), spec.tokens);
    // The number of samples must not depend on the offset; so up to 2T tokens at the ends rest in an epoch.
    const int64_t samples = std::max<int64_t>(1, (range.size() - spec.tokens) / spec.tokens);
    const int64_t offsets = std::min(spec.tokens, range.size() - samples * spec.tokens);
    for (const uint64_t value :
         {file.digest(), static_cast<uint64_t>(range.end), static_cast<uint64_t>(blend_.numerators()[i])})
      add(value);
    total += static_cast<uint64_t>(range.size());
    sources_.push_back({std::move(file), range, samples, offsets});
  }
  digest_ = uint64_t{hash} << 32 ^ total ^ static_cast<uint64_t>(spec_.tokens) << 1 ^
            (spec_.pack_documents ? 1 : 0);
}

void TrainingData::fill(int64_t first_sample, const Batch& batch) const {
  check_rows(batch, spec_.tokens);
  const RowRules rules = {spec_.vocab_size, spec_.pack_documents, spec_.score_document_starts};
  for (int64_t i = 0; i < batch.rows(); ++i) {
    const Blend::Draw draw = blend_(first_sample + i);
    const Source& source = sources_[static_cast<size_t>(draw.source)];
    const int64_t epoch = draw.index / source.samples;
    const auto index = static_cast<uint64_t>(draw.index % source.samples);
    // Named by number, not by path: a dataset may move.
    const Rng offsets(spec_.seed, fmt::format("sample offset of source {}", draw.source));
    const Permutation order(spec_.seed, fmt::format("sample order of source {} epoch {}", draw.source, epoch),
                            static_cast<uint64_t>(source.samples));
    const auto offset = static_cast<int64_t>(
        offsets.below(static_cast<uint64_t>(epoch), static_cast<uint64_t>(source.offsets)));
    const int64_t begin = source.range.begin + offset + static_cast<int64_t>(order(index)) * spec_.tokens;
    fill_row(source.file, source.range, begin, 0, rules, batch, i);
  }
}

int64_t TrainingData::num_tokens() const {
  int64_t sum = 0;
  for (const Source& source : sources_) sum += source.range.size();
  return sum;
}

int64_t TrainingData::samples_per_epoch() const {
  int64_t sum = 0;
  for (const Source& source : sources_) sum += source.samples;
  return sum;
}

ValidationSet::ValidationSet(const ValidationSpec& spec) : spec_(spec) {
  TRANSXSSM_CHECK(spec.tokens >= 1 && spec.end_of_document >= 0 && spec.end_of_document < spec.vocab_size,
                  "rows of {} tokens, end of document {} of {}", spec.tokens, spec.end_of_document,
                  spec.vocab_size);
  if (spec.prefixes.empty()) throw UsageError("There is no validation set; give at least one.");
  for (const std::string& prefix : spec.prefixes) {
    TokenFile file(prefix);
    file.check_vocabulary(spec.vocab_size);
    const TokenRange range = spec.fraction > 0 ? split_documents(file, spec.fraction).validation
                                               : TokenRange{0, file.num_tokens()};
    if (range.size() == 0) throw DataError("Validation set {} has no tokens.", prefix);
    sources_.push_back({std::move(file), range, rows_});
    rows_ += (range.size() + spec.tokens - 1) / spec.tokens;
  }
}

int64_t ValidationSet::num_tokens() const {
  int64_t sum = 0;
  for (const Source& source : sources_) sum += source.range.size();
  return sum;
}

const ValidationSet::Source& ValidationSet::source_of(int64_t row) const {
  size_t i = sources_.size() - 1;
  while (sources_[i].first_row > row) --i;
  return sources_[i];
}

void ValidationSet::fill(int64_t first_row, const Batch& batch) const {
  check_rows(batch, spec_.tokens);
  const RowRules rules = {spec_.vocab_size, spec_.pack_documents, spec_.score_document_starts};
  for (int64_t i = 0; i < batch.rows(); ++i) {
    const Source& source = source_of(first_row + i);
    const int64_t begin = source.range.begin + (first_row + i - source.first_row) * spec_.tokens - 1;
    fill_row(source.file, source.range, begin, spec_.end_of_document, rules, batch, i);
  }
}

int64_t ValidationSet::text_bytes(std::span<const int32_t> bytes_of_id, int64_t num_rows) const {
  TRANSXSSM_CHECK(static_cast<int64_t>(bytes_of_id.size()) >= spec_.vocab_size, "{} lengths for {} ids",
                  bytes_of_id.size(), spec_.vocab_size);
  Arena memory([&] {
    Carver count;
    Batch::carve(count, 1, spec_.tokens);
    return count.used();
  }());
  Carver carver = memory.carver();
  const Batch row = Batch::carve(carver, 1, spec_.tokens);
  int64_t sum = 0;
  for (int64_t r = 0; r < std::min(num_rows, rows_); ++r) {
    fill(r, row);
    for (int64_t j = 0; j < spec_.tokens; ++j)
      if (row.valid.at<uint8_t>({0, j}))
        sum += bytes_of_id[static_cast<size_t>(row.target.at<int32_t>({0, j}))];
  }
  return sum;
}

}  // namespace transxssm
