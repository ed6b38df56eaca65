#include "runtime/data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "runtime/error.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using testing::ElementsAre;

// A batch with memory of its own.
struct OwnBatch {
  OwnBatch(int64_t rows, int64_t tokens) : memory(bytes(rows, tokens)) {
    Carver carver = memory.carver();
    batch = Batch::carve(carver, rows, tokens);
  }
  static int64_t bytes(int64_t rows, int64_t tokens) {
    Carver carver;
    Batch::carve(carver, rows, tokens);
    return carver.used();
  }
  std::vector<int> row(const Tensor& field, int64_t r) const {
    std::vector<int> values;
    for (int64_t t = 0; t < batch.tokens(); ++t)
      values.push_back(field.dtype() == DType::u8 ? field.at<uint8_t>({r, t}) : field.at<int32_t>({r, t}));
    return values;
  }
  Arena memory;
  Batch batch;
};

class SamplerTest : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::vector<std::vector<int32_t>>& documents,
                    int64_t vocab_size = 100000) {
    TokenFileWriter writer(posix_file_system(), directory_ / name, vocab_size, true);
    for (const auto& document : documents) {
      writer.add_tokens(document);
      writer.end_document();
    }
    writer.finish({});
    return directory_ / name;
  }
  // Row r of the batch is row r of the set's one source.
  static void fill(const ValidationSet& set, const Batch& batch) {
    for (int64_t r = 0; r < batch.rows(); ++r)
      r < set.num_rows() ? set.fill(0, r, batch, r) : set.fill_nothing(batch, r);
  }
  // Token i of the stream has id first + i, so that a row says where it was cut.
  std::string write_counting(const std::string& name, int32_t tokens, int32_t first = 0) {
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    std::iota(ids.begin(), ids.end(), first);
    return write(name, {ids});
  }
  TemporaryDirectory directory_;
};

TEST_F(SamplerTest, EachSampleOfAnEpochExactlyOnce) {
  constexpr int kTokens = 7;
  const TrainingData data(
      {.sources = {{write_counting("set", 1003)}}, .seed = 5, .tokens = kTokens, .vocab_size = 100000});
  const int64_t samples = data.samples_per_epoch();
  EXPECT_EQ(samples, (1003 - kTokens) / kTokens);
  std::set<int> offsets;
  std::set<std::vector<int>> orders;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    OwnBatch rows(samples, kTokens);
    data.fill(epoch * samples, rows.batch);
    std::vector<int> begins;
    for (int64_t r = 0; r < samples; ++r) {
      const std::vector<int> input = rows.row(rows.batch.input, r);
      const std::vector<int> target = rows.row(rows.batch.target, r);
      for (int t = 0; t < kTokens; ++t) {
        ASSERT_EQ(input[static_cast<size_t>(t)], input[0] + t);
        ASSERT_EQ(target[static_cast<size_t>(t)], input[0] + t + 1);
      }
      begins.push_back(input[0]);
    }
    std::vector<int> sorted = begins;
    std::sort(sorted.begin(), sorted.end());
    // One offset below T, then stride T, with no sample missing or twice.
    ASSERT_LT(sorted[0], kTokens);
    for (int64_t r = 0; r < samples; ++r) ASSERT_EQ(sorted[static_cast<size_t>(r)], sorted[0] + r * kTokens);
    offsets.insert(sorted[0]);
    for (int& begin : begins) begin -= sorted[0];
    orders.insert(begins);
  }
  EXPECT_GT(offsets.size(), 4u);
  EXPECT_EQ(orders.size(), 20u);
}

TEST_F(SamplerTest, ARowDependsOnSeedAndSampleAlone) {
  const std::string prefix = write_counting("set", 50000);
  TrainingDataSpec spec = {.sources = {{prefix}}, .seed = 1, .tokens = 16, .vocab_size = 100000};
  const TrainingData data(spec), again(spec);
  spec.seed = 2;
  const TrainingData other(spec);
  OwnBatch whole(64, 16), part(16, 16), reseeded(64, 16);
  // Across the end of the first epoch.
  const int64_t first = data.samples_per_epoch() - 20;
  data.fill(first, whole.batch);
  other.fill(first, reseeded.batch);
  int equal = 0;
  // Any cut of the step into ranks and microbatches, in any order, reads the same rows.
  for (const int64_t begin : {48, 0, 32, 16}) {
    again.fill(first + begin, part.batch);
    for (int64_t r = 0; r < 16; ++r) {
      EXPECT_EQ(part.row(part.batch.input, r), whole.row(whole.batch.input, begin + r));
      equal += reseeded.row(reseeded.batch.input, begin + r) == whole.row(whole.batch.input, begin + r);
    }
  }
  EXPECT_LE(equal, 1);
  EXPECT_EQ(data.digest(), again.digest());
  EXPECT_NE(data.digest(),
            TrainingData(
                {.sources = {{write_counting("more", 50001)}}, .seed = 1, .tokens = 16, .vocab_size = 100000})
                .digest());
  // A sample far beyond any table.
  data.fill(int64_t{1} << 50, part.batch);
}

TEST_F(SamplerTest, ShufflesEvenly) {
  // Over many epochs each place of the order sees early and late samples alike.
  constexpr int kSamples = 50, kEpochs = 400;
  const TrainingData data(
      {.sources = {{write_counting("set", kSamples + 1)}}, .seed = 3, .tokens = 1, .vocab_size = 100000});
  ASSERT_EQ(data.samples_per_epoch(), kSamples);
  std::vector<double> sum(kSamples, 0);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    OwnBatch rows(kSamples, 1);
    data.fill(int64_t{epoch} * kSamples, rows.batch);
    for (int r = 0; r < kSamples; ++r) sum[static_cast<size_t>(r)] += rows.batch.input.at<int32_t>({r, 0});
  }
  // Mean of a uniform place: 24.5 with a standard error of 14.43 / 20 = 0.72; five of them.
  for (const double total : sum) EXPECT_NEAR(total / kEpochs, 24.5, 3.7);
}

TEST_F(SamplerTest, PacksDocuments) {
  // One sample of 10 tokens: the cut must start at 0.
  const std::string prefix = write("set", {{10, 11, 12}, {20}, {}, {30, 31, 32, 33, 34, 35, 36}});
  TrainingDataSpec spec = {.sources = {{prefix}}, .tokens = 10, .vocab_size = 100000};
  OwnBatch row(1, 10);
  TrainingData(spec).fill(0, row.batch);
  EXPECT_THAT(row.row(row.batch.input, 0), ElementsAre(10, 11, 12, 20, 30, 31, 32, 33, 34, 35));
  EXPECT_THAT(row.row(row.batch.target, 0), ElementsAre(11, 12, 20, 30, 31, 32, 33, 34, 35, 36));
  EXPECT_THAT(row.row(row.batch.position, 0), ElementsAre(0, 1, 2, 0, 0, 1, 2, 3, 4, 5));
  EXPECT_THAT(row.row(row.batch.document, 0), ElementsAre(0, 0, 0, 1, 2, 2, 2, 2, 2, 2));
  EXPECT_THAT(row.row(row.batch.valid, 0), ElementsAre(1, 1, 0, 0, 1, 1, 1, 1, 1, 1));

  spec.score_document_starts = true;
  TrainingData(spec).fill(0, row.batch);
  EXPECT_THAT(row.row(row.batch.valid, 0), ElementsAre(1, 1, 1, 1, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(row.row(row.batch.document, 0), ElementsAre(0, 0, 0, 1, 2, 2, 2, 2, 2, 2));

  spec.pack_documents = false;
  spec.score_document_starts = false;
  TrainingData(spec).fill(0, row.batch);
  EXPECT_THAT(row.row(row.batch.position, 0), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_THAT(row.row(row.batch.document, 0), ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(row.row(row.batch.valid, 0), ElementsAre(1, 1, 1, 1, 1, 1, 1, 1, 1, 1));
}

TEST_F(SamplerTest, RowsThatStartInsideADocumentCountFromTheRow) {
  std::vector<std::vector<int32_t>> documents;
  for (int32_t d = 0, id = 0; d < 40; ++d) {
    documents.emplace_back();
    for (int32_t i = 0; i < 1 + d % 13; ++i) documents.back().push_back(id++);
  }
  const std::string prefix = write("set", documents);
  const TokenFile file(prefix);
  const TrainingData data({.sources = {{prefix}}, .seed = 9, .tokens = 8, .vocab_size = 100000});
  OwnBatch rows(2 * data.samples_per_epoch(), 8);
  data.fill(0, rows.batch);
  for (int64_t r = 0; r < rows.batch.rows(); ++r) {
    const auto input = rows.row(rows.batch.input, r), position = rows.row(rows.batch.position, r);
    const auto document = rows.row(rows.batch.document, r), valid = rows.row(rows.batch.valid, r);
    for (size_t t = 0; t < 8; ++t) {
      const int64_t token = input[t];  // ids are places in the stream
      const int64_t begin = std::max<int64_t>(file.document_begin(file.document_of(token)), input[0]);
      EXPECT_EQ(position[t], token - begin);
      EXPECT_EQ(document[t], file.document_of(token) - file.document_of(input[0]));
      EXPECT_EQ(valid[t], file.document_of(token) == file.document_of(token + 1));
    }
  }
}

TEST_F(SamplerTest, SplitsByDocuments) {
  std::vector<std::vector<int32_t>> documents;
  for (int32_t d = 0; d < 100; ++d) documents.push_back({d, d, d, d});
  const std::string prefix = write("set", documents);
  const TrainingData data(
      {.sources = {{prefix}}, .validation_fraction = 0.03, .tokens = 4, .vocab_size = 100});
  const ValidationSet validation({.sources = {{prefix}}, .fraction = 0.03, .tokens = 4, .vocab_size = 100});
  EXPECT_EQ(data.num_tokens(), 97 * 4);
  EXPECT_EQ(validation.num_tokens(), 3 * 4);
  OwnBatch rows(5 * data.samples_per_epoch(), 4);
  data.fill(0, rows.batch);
  int largest = 0;
  for (int64_t r = 0; r < rows.batch.rows(); ++r)
    for (const int id : rows.row(rows.batch.target, r)) largest = std::max(largest, id);
  EXPECT_EQ(largest, 96);
  OwnBatch held(3, 4);
  fill(validation, held.batch);
  EXPECT_THAT(held.row(held.batch.target, 0), ElementsAre(97, 97, 97, 97));
  // At least one document is held out, and one must be left.
  EXPECT_EQ(split_documents(TokenFile(prefix), 1e-6).validation.size(), 4);
  EXPECT_THROW(split_documents(TokenFile(write_counting("one", 100)), 0.1), DataError);
  EXPECT_THROW(split_documents(TokenFile(prefix), 1.0), UsageError);
}

TEST_F(SamplerTest, RefusesWhatCannotBeRead) {
  const std::string prefix = write_counting("set", 20);
  EXPECT_THROW(TrainingData({.sources = {{prefix}}, .tokens = 20, .vocab_size = 100}), DataError);
  EXPECT_NO_THROW(TrainingData({.sources = {{prefix}}, .tokens = 19, .vocab_size = 100}));
  EXPECT_THROW(TrainingData({.sources = {{prefix}}, .tokens = 4, .vocab_size = 19}), DataError);
  EXPECT_THROW(TrainingData({.sources = {}, .tokens = 4, .vocab_size = 19}), UsageError);
}

TEST_F(SamplerTest, BlendsSources) {
  const TrainingData data({.sources = {{write_counting("a", 101), 1}, {write_counting("b", 401, 1000), 3}},
                           .tokens = 4,
                           .vocab_size = 100000});
  OwnBatch rows(100, 4);
  data.fill(1000, rows.batch);
  std::map<int, int> seen;
  for (int64_t r = 0; r < 100; ++r) ++seen[rows.row(rows.batch.input, r)[0] / 1000];
  EXPECT_EQ(seen[0], 25);
  EXPECT_EQ(seen[1], 75);
  // Each source has epochs of its own: any 24 neighbours of source a are all of its samples.
  std::set<int> begins;
  OwnBatch row(1, 4);
  for (int64_t n = 0, found = 0; found < 24; ++n) {
    data.fill(n, row.batch);
    const int begin = row.row(row.batch.input, 0)[0];
    if (begin >= 1000) continue;
    begins.insert(begin);
    ++found;
  }
  EXPECT_EQ(begins.size(), 24u);
}

TEST_F(SamplerTest, ValidationHasEachTokenOnceAsTarget) {
  const std::string prefix = write("set", {{10, 11, 12}, {20, 21}, {}, {30, 31, 32, 33}});
  const ValidationSpec spec = {.sources = {{prefix}}, .tokens = 4, .vocab_size = 100, .end_of_document = 99};
  const ValidationSet set(spec);
  EXPECT_EQ(set.num_tokens(), 9);
  ASSERT_EQ(set.num_rows(), 3);
  OwnBatch rows(4, 4);
  fill(set, rows.batch);
  const Batch& batch = rows.batch;
  EXPECT_THAT(rows.row(batch.input, 0), ElementsAre(99, 10, 11, 12));
  EXPECT_THAT(rows.row(batch.target, 0), ElementsAre(10, 11, 12, 20));
  EXPECT_THAT(rows.row(batch.position, 0), ElementsAre(0, 0, 1, 2));
  EXPECT_THAT(rows.row(batch.document, 0), ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(rows.row(batch.valid, 0), ElementsAre(1, 1, 1, 1));
  EXPECT_THAT(rows.row(batch.input, 1), ElementsAre(20, 21, 30, 31));
  EXPECT_THAT(rows.row(batch.target, 1), ElementsAre(21, 30, 31, 32));
  EXPECT_THAT(rows.row(batch.position, 1), ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(rows.row(batch.document, 1), ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(rows.row(batch.input, 2), ElementsAre(32, 33, 99, 99));
  EXPECT_THAT(rows.row(batch.target, 2), ElementsAre(33, 99, 99, 99));
  EXPECT_THAT(rows.row(batch.document, 2), ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(rows.row(batch.valid, 2), ElementsAre(1, 0, 0, 0));
  EXPECT_THAT(rows.row(batch.valid, 3), ElementsAre(0, 0, 0, 0));

  std::vector<int32_t> lengths(100, 1000000);
  for (const int32_t id : {10, 11, 12, 20, 21, 30, 31, 32, 33}) lengths[static_cast<size_t>(id)] = id;
  EXPECT_EQ(text_bytes(lengths, batch, 0), 10 + 11 + 12 + 20);
  EXPECT_EQ(text_bytes(lengths, batch, 1), 21 + 30 + 31 + 32);
  EXPECT_EQ(text_bytes(lengths, batch, 2), 33);
  EXPECT_EQ(text_bytes(lengths, batch, 3), 0);

  ValidationSpec strict = spec;
  strict.score_document_starts = false;
  fill(ValidationSet(strict), rows.batch);
  EXPECT_THAT(rows.row(batch.valid, 0), ElementsAre(0, 1, 1, 0));
  EXPECT_THAT(rows.row(batch.valid, 1), ElementsAre(1, 0, 1, 1));
  EXPECT_EQ(text_bytes(lengths, batch, 0), 11 + 12);
}

TEST_F(SamplerTest, ValidationOverSeveralSources) {
  const std::string a = write_counting("a", 10, 100), b = write_counting("b", 7, 200);
  for (const bool pack : {true, false}) {
    const ValidationSet set({.sources = {{a}, {b}},
                             .tokens = 4,
                             .vocab_size = 300,
                             .end_of_document = 1,
                             .pack_documents = pack});
    ASSERT_EQ(set.num_rows(), 5);
    std::vector<int> targets;
    OwnBatch row(1, 4);
    for (const auto& [source, rows] : {std::pair{0, 3}, {1, 2}})
      for (int64_t r = 0; r < rows; ++r) {
        set.fill(source, r, row.batch, 0);
        if (r == 0) {
          EXPECT_EQ(row.row(row.batch.input, 0)[0], 1);
        }
        for (int64_t t = 0; t < 4; ++t)
          if (row.batch.valid.at<uint8_t>({0, t})) targets.push_back(row.batch.target.at<int32_t>({0, t}));
      }
    std::sort(targets.begin(), targets.end());
    std::vector<int> expected(10);
    std::iota(expected.begin(), expected.end(), 100);
    for (int i = 0; i < 7; ++i) expected.push_back(200 + i);
    EXPECT_EQ(targets, expected);
  }
}

TEST_F(SamplerTest, ASampleOfABlendIsByWeightAndPartOfALargerOne) {
  const std::string a = write_counting("a", 400), b = write_counting("b", 4000), c = write_counting("c", 40);
  const ValidationSet set({.sources = {{a, 3}, {b, 1}, {c, 1e-9}}, .tokens = 4, .vocab_size = 100000});
  ASSERT_EQ(set.num_rows(), 100 + 1000 + 10);
  EXPECT_THAT(set.choose(1), ElementsAre(1, 1, 1));  // none without a figure
  EXPECT_THAT(set.choose(65), ElementsAre(48, 16, 1));
  EXPECT_THAT(set.choose(201), ElementsAre(100, 100, 1));  // a has no more
  EXPECT_THAT(set.choose(1109), ElementsAre(100, 1000, 9));
  EXPECT_THAT(set.choose(5000), ElementsAre(100, 1000, 10));
  std::vector<int64_t> smaller = set.choose(1);
  for (int64_t rows = 2; rows <= 1110; ++rows) {
    const std::vector<int64_t> chosen = set.choose(rows);
    EXPECT_EQ(std::accumulate(chosen.begin(), chosen.end(), int64_t{0}), std::max<int64_t>(rows, 3));
    for (size_t i = 0; i < 3; ++i) ASSERT_GE(chosen[i], smaller[i]) << rows;
    smaller = chosen;
  }
  EXPECT_NEAR(set.share(0), 0.75, 1e-8);
}

TEST_F(SamplerTest, EmptyDocumentsAtTheEndsLeaveNoSideEmpty) {
  const std::vector<int32_t> d = {1, 2, 3, 4, 5, 6};
  const auto split = [&](const std::vector<std::vector<int32_t>>& documents, double fraction) {
    const DocumentSplit s = split_documents(TokenFile(write("set", documents)), fraction);
    EXPECT_EQ(s.training.end, s.validation.begin);
    return std::pair{s.training.size(), s.validation.size()};
  };
  EXPECT_EQ(split({d, d, d, {}, {}}, 0.01), std::pair(int64_t{12}, int64_t{6}));
  EXPECT_EQ(split({{}, {}, d, d, {}}, 0.9), std::pair(int64_t{6}, int64_t{6}));
  EXPECT_EQ(split({d, {}, d, {}, d}, 0.4), std::pair(int64_t{12}, int64_t{6}));
  EXPECT_EQ(split({d, d, d}, 0.99), std::pair(int64_t{6}, int64_t{12}));
  EXPECT_EQ(split({{}, d, {}}, 0), std::pair(int64_t{6}, int64_t{0}));
  const auto refusal = [&](const std::vector<std::vector<int32_t>>& documents, double fraction) {
    const std::string prefix = write("set", documents);
    try {
      const TrainingData data(
          {.sources = {{prefix}}, .validation_fraction = fraction, .tokens = 4, .vocab_size = 100});
    } catch (const DataError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(refusal({{}, {}, {}}, 0.01), testing::HasSubstr("no tokens: all its 3 documents are empty"));
  EXPECT_THAT(refusal({{}, {}, {}}, 0), testing::HasSubstr("no tokens: all its 3 documents are empty"));
  EXPECT_THAT(refusal({}, 0.01), testing::HasSubstr("no tokens: it has no documents"));
  EXPECT_THAT(refusal({{}, d, {}}, 0.5), testing::HasSubstr("1 document with tokens, too few"));
  EXPECT_THAT(refusal({{7}}, 0), testing::HasSubstr("1 tokens for training, fewer than one sample of 4"));
  EXPECT_EQ(refusal({{}, d, {}}, 0), "");
}

}  // namespace
}  // namespace transxssm
