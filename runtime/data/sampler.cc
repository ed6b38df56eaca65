#include "runtime/data/sampler.h"

#include <algorithm>
#include <array>
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

std::shared_ptr<const TokenFile> open_source(const DataSource& source, int64_t vocab_size) {
  if (source.file) return source.file;
  auto file = std::make_shared<const TokenFile>(source.prefix);
  file->check_vocabulary(vocab_size);
  return file;
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
  const int64_t documents = file.num_documents(), tokens = file.num_tokens();
  if (tokens == 0)
    throw DataError(
        "{} has no tokens: {}.", file.prefix(),
        documents == 0 ? "it has no documents" : fmt::format("all its {} documents are empty", documents));
  if (validation_fraction == 0) return {{0, tokens}, {tokens, tokens}};
  const auto held_out =
      std::max<int64_t>(1, std::llround(static_cast<double>(documents) * validation_fraction));
  // Empty documents at either end must not leave a side without tokens.
  const int64_t first_end = file.document_begin(file.document_of(0) + 1);
  const int64_t last_begin = file.document_begin(file.document_of(tokens - 1));
  if (first_end > last_begin)
    throw DataError(
        "{} has 1 document with tokens, too few to hold out a fraction of {} for validation; tokenize the "
        "text as several documents (--separator), or give a validation set of its own.",
        file.prefix(), validation_fraction);
  const int64_t cut =
      std::clamp(file.document_begin(std::max<int64_t>(0, documents - held_out)), first_end, last_begin);
  return {{0, cut}, {cut, tokens}};
}

TrainingData::TrainingData(const TrainingDataSpec& spec) : spec_(spec), blend_(weights_of(spec.sources)) {
  TRANSXSSM_CHECK(spec.tokens >= 1, "rows of {} tokens", spec.tokens);
  uint32_t hash = 0;
  uint64_t total = 0;
  const auto add = [&](uint64_t value) { hash = crc32c(std::as_bytes(std::span(&value, 1)), hash); };
  for (size_t i = 0; i < spec.sources.size(); ++i) {
    const auto file = open_source(spec.sources[i], spec.vocab_size);
    const TokenRange range = split_documents(*file, spec.validation_fraction).training;
    if (range.size() <= spec.tokens)
      throw DataError(
          "{} has {} tokens for training, fewer than one sample of {} and its target; use a shorter "
          "sequence length or more text.",
          file->prefix(), range.size(), spec.tokens);
    // The number of samples must not depend on the offset; so up to 2T tokens at the ends rest in an epoch.
    const int64_t samples = std::max<int64_t>(1, (range.size() - spec.tokens) / spec.tokens);
    const int64_t offsets = std::min(spec.tokens, range.size() - samples * spec.tokens);
    for (const uint64_t value :
         {file->digest(), static_cast<uint64_t>(range.end), static_cast<uint64_t>(blend_.numerators()[i])})
      add(value);
    total += static_cast<uint64_t>(range.size());
    sources_.push_back({file, range, samples, offsets});
  }
  spec_.sources.clear();  // theirs now
  digest_ = uint64_t{hash} << 32 ^ total ^ static_cast<uint64_t>(spec_.tokens) << 1 ^
            (spec_.pack_documents ? 1 : 0);
}

TrainingData::Place TrainingData::place_of(int64_t sample) const {
  const Blend::Draw draw = blend_(sample);
  const Source& source = sources_[static_cast<size_t>(draw.source)];
  const int64_t epoch = draw.index / source.samples;
  const auto index = static_cast<uint64_t>(draw.index % source.samples);
  // Streams are named by the source's number, not by its path: a dataset may move. No memory is taken here.
  std::array<char, 96> name;
  const auto named = [&](auto format, auto... values) {
    const auto end = fmt::format_to_n(name.data(), name.size(), format, values...);
    return std::string_view(name.data(), end.size);
  };
  const Rng offsets(spec_.seed, named(FMT_STRING("sample offset of source {}"), draw.source));
  const auto offset = static_cast<int64_t>(
      offsets.below(static_cast<uint64_t>(epoch), static_cast<uint64_t>(source.offsets)));
  const Permutation order(spec_.seed,
                          named(FMT_STRING("sample order of source {} epoch {}"), draw.source, epoch),
                          static_cast<uint64_t>(source.samples));
  return {&source, source.range.begin + offset + static_cast<int64_t>(order(index)) * spec_.tokens};
}

void TrainingData::fill(int64_t first_sample, const Batch& batch) const {
  check_rows(batch, spec_.tokens);
  const RowRules rules = {spec_.vocab_size, spec_.pack_documents, spec_.score_document_starts};
  for (int64_t i = 0; i < batch.rows(); ++i) {
    const Place place = place_of(first_sample + i);
    fill_row(*place.source->file, place.source->range, place.begin, 0, rules, batch, i);
  }
}

void TrainingData::prefetch(int64_t first_sample, int64_t rows) const {
  for (int64_t i = 0; i < rows; ++i) {
    const Place place = place_of(first_sample + i);
    place.source->file->prefetch(place.begin, spec_.tokens + 1);
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
  if (spec.sources.empty()) throw UsageError("There is no validation set; give at least one.");
  const Blend blend(weights_of(spec.sources));
  for (size_t i = 0; i < spec.sources.size(); ++i) {
    const auto file = open_source(spec.sources[i], spec.vocab_size);
    // The split refuses a file without tokens.
    const DocumentSplit split = split_documents(*file, spec.fraction);
    const TokenRange range = spec.fraction > 0 ? split.validation : split.training;
    const int32_t said = file->end_of_document();
    if (said >= spec.vocab_size)
      throw DataError("{}.json says that its documents end with id {}, outside the vocabulary of {}.",
                      file->prefix(), said, spec.vocab_size);
    sources_.push_back({file, range, (range.size() + spec.tokens - 1) / spec.tokens,
                        blend.share(static_cast<int>(i)), said >= 0 ? said : spec.end_of_document});
  }
  spec_.sources.clear();
}

int64_t ValidationSet::num_rows() const {
  int64_t sum = 0;
  for (const Source& source : sources_) sum += source.rows;
  return sum;
}

int64_t ValidationSet::num_tokens() const {
  int64_t sum = 0;
  for (const Source& source : sources_) sum += source.range.size();
  return sum;
}

std::vector<int64_t> ValidationSet::choose(int64_t rows) const {
  std::vector<int64_t> chosen;
  for (const Source& source : sources_) chosen.push_back(rows >= num_rows() ? source.rows : 1);
  // The next row goes where the share is furthest ahead of the rows taken (Webster's rule), so that fewer
  // rows are always some of more.
  const auto want = [&](size_t i) { return sources_[i].share / static_cast<double>(2 * chosen[i] + 1); };
  const auto less = [&](size_t a, size_t b) { return want(a) < want(b) || (want(a) == want(b) && a > b); };
  std::vector<size_t> open;  // a heap
  for (size_t i = 0; i < sources_.size(); ++i)
    if (chosen[i] < sources_[i].rows) open.push_back(i);
  std::make_heap(open.begin(), open.end(), less);
  for (int64_t left = rows - static_cast<int64_t>(sources_.size()); left > 0 && !open.empty(); --left) {
    std::pop_heap(open.begin(), open.end(), less);
    const size_t i = open.back();
    if (++chosen[i] < sources_[i].rows)
      std::push_heap(open.begin(), open.end(), less);
    else
      open.pop_back();
  }
  return chosen;
}

void ValidationSet::fill(int source, int64_t row, const Batch& batch, int64_t i) const {
  check_rows(batch, spec_.tokens);
  const RowRules rules = {spec_.vocab_size, spec_.pack_documents, spec_.score_document_starts};
  const Source& s = sources_[static_cast<size_t>(source)];
  const int64_t begin = s.range.begin + row * spec_.tokens - 1;
  fill_row(*s.file, s.range, begin, s.end_of_document, rules, batch, i);
}

void ValidationSet::fill_nothing(const Batch& batch, int64_t i) const {
  fill(0, sources_[0].rows, batch, i);
}

int64_t text_bytes(std::span<const int32_t> bytes_of_id, const Batch& batch, int64_t i) {
  int64_t sum = 0;
  for (int64_t j = 0; j < batch.tokens(); ++j)
    if (batch.valid.at<uint8_t>({i, j}))
      sum += bytes_of_id[static_cast<size_t>(batch.target.at<int32_t>({i, j}))];
  return sum;
}

}  // namespace transxssm
