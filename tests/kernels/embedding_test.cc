#include "kernels/embedding.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

constexpr int64_t kVocabulary = 13, kTokens = 40;

// Every id of the vocabulary three times or more, out of order.
OwnedTensor all_ids() {
  OwnedTensor ids = zeros<int32_t>({kTokens});
  for (int64_t t = 0; t < kTokens; ++t) set(ids, t, static_cast<double>(t * 5 % kVocabulary));
  return ids;
}

template <class T>
void check_slices(int64_t width, int64_t padding) {
  Stream stream = test_stream(2);
  const OwnedTensor ids = all_ids();
  const OwnedTensor weight = random_normal<Wide<T>>({kVocabulary, width}, 2, 1, 0, padding);
  const OwnedTensor dy = random_normal<T>({kTokens, width}, 3, 1, 0, padding);
  const OwnedTensor d_weight = random_normal<Wide<T>>({kVocabulary, width}, 4, 1, 0, padding),
                    before = clone(d_weight);
  std::vector<double> sum(static_cast<size_t>(kTokens * width));
  // Slices of 0, 5 and 8 ids: their outputs add up to the lookup in the whole table.
  for (auto [begin, count] : {std::pair<int64_t, int64_t>{0, 5}, {5, 0}, {5, 8}}) {
    const OwnedTensor y = filled<T>({kTokens, width}, 99, padding);
    run_and_wait(stream,
                 EmbeddingForward{
                     .ids = ids, .weight = weight.view().slice(0, begin, count), .y = y, .first_id = begin});
    run_and_wait(
        stream,
        EmbeddingBackward{
            .ids = ids, .dy = dy, .d_weight = d_weight.view().slice(0, begin, count), .first_id = begin});
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[static_cast<int64_t>(i)];
    EXPECT_TRUE(y.padding_intact());
  }
  const OwnedTensor rounded = zeros<T>({1});
  std::vector<double> expected(sum.size()), gradient = values(before);
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t i = 0; i < width; ++i) {
      const int64_t element = static_cast<int64_t>(ids[t]) * width + i;
      set(rounded, 0, weight[element]);
      expected[static_cast<size_t>(t * width + i)] = rounded[0];
      gradient[static_cast<size_t>(element)] += dy[t * width + i];
    }
  EXPECT_EQ(sum, expected);
  EXPECT_LT(relative_error(d_weight, gradient), tolerance<Wide<T>>(1e-6, 1e-14));
  EXPECT_TRUE(d_weight.padding_intact());
}

TEST(Embedding, SlicesMakeTheWhole) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (int64_t padding : {0, 3})
      for_dtypes<float, double, BFloat16>([&](auto type) { check_slices<decltype(type)>(width, padding); });
}

template <class T>
void check_gradient() {
  Stream stream = test_stream();
  const OwnedTensor ids = all_ids();
  const OwnedTensor weight = random_normal<T>({kVocabulary, 5}, 2), y = zeros<T>({kTokens, 5});
  const OwnedTensor dy = random_normal<T>({kTokens, 5}, 3), d_weight = zeros<T>({kVocabulary, 5});
  run_and_wait(stream, EmbeddingBackward{.ids = ids, .dy = dy, .d_weight = d_weight});
  auto f = [&] {
    run_and_wait(stream, EmbeddingForward{.ids = ids, .weight = weight, .y = y});
    return dot(y, dy);
  };
  EXPECT_LT(gradcheck(f, weight, d_weight), 1e-8);
}

TEST(Embedding, BackwardIsTheGradient) {
  for_dtypes<double>([](auto type) { check_gradient<decltype(type)>(); });
}

template <class T>
void check_threads() {
  const OwnedTensor ids = random_integers<int32_t>({700}, 1, 0, 5), dy = random_normal<T>({700, 200}, 2);
  std::vector<OwnedTensor> results;
  for (int num_threads : {1, 2, 3}) {
    Stream stream = test_stream(num_threads);
    results.push_back(zeros<Wide<T>>({5, 200}));
    run_and_wait(stream, EmbeddingBackward{.ids = ids, .dy = dy, .d_weight = results.back()});
    EXPECT_TRUE(same_bits(results.front(), results.back()));
  }
}

TEST(Embedding, AnyNumberOfThreadsGivesTheSameBits) {
  for_dtypes<float, BFloat16>([](auto type) { check_threads<decltype(type)>(); });
}

}  // namespace
}  // namespace transxssm
