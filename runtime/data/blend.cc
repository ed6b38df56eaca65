#include "runtime/data/blend.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr int64_t kMaxPeriod = 1 << 16;
constexpr int kShareBits = 62;  // 2 m k, of a share and a number of samples, has at most 126

// The weights in a unit in which their sum is finite and far from what is not exact; the same bits otherwise.
std::vector<double> scaled(const std::vector<double>& weights) {
  if (weights.empty()) throw UsageError("There is no data source; give at least one.");
  double largest = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0) || !std::isfinite(weights[i]))
      throw UsageError("The weight of data source {} is {}; it must be a positive number.", i, weights[i]);
    largest = std::max(largest, weights[i]);
  }
  std::vector<double> result;
  for (const double weight : weights) result.push_back(std::ldexp(weight, -std::ilogb(largest)));
  return result;
}

// Whole numbers in the ratio of the weights with a sum up to kMaxPeriod; empty where there are none.
std::vector<int64_t> small_numerators(const std::vector<double>& weights, double sum) {
  std::vector<int64_t> whole(weights.size());
  for (int64_t denominator = 1; denominator <= kMaxPeriod; ++denominator) {
    bool exact = true;
    for (size_t i = 0; i < weights.size() && exact; ++i) {
      const double share = weights[i] / sum * static_cast<double>(denominator);
      whole[i] = std::llround(share);
      exact = whole[i] > 0 && std::abs(share - std::round(share)) < 1e-9 * static_cast<double>(denominator);
    }
    if (exact) return whole;
  }
  return {};
}

}  // namespace

Blend::Blend(const std::vector<double>& weights) {
  const std::vector<double> w = scaled(weights);
  const double sum = std::accumulate(w.begin(), w.end(), 0.0);
  numerators_ = small_numerators(w, sum);
  if (!numerators_.empty()) {
    sum_ = period_ = std::accumulate(numerators_.begin(), numerators_.end(), int64_t{0});
    tabulate();
    return;
  }
  period_ = 0;
  for (const double weight : w)
    numerators_.push_back(static_cast<int64_t>(std::ldexp(weight / sum, kShareBits)));
  for (size_t i = 0; i < w.size(); ++i)
    if (numerators_[i] > 0) splits_.push_back({static_cast<int>(i), numerators_[i], 0});
  std::stable_sort(splits_.begin(), splits_.end(),
                   [](const Split& a, const Split& b) { return a.numerator < b.numerator; });
  sum_ = 0;
  for (auto split = splits_.rbegin(); split != splits_.rend(); ++split) split->sum = sum_ += split->numerator;
}

void Blend::tabulate() {
  const auto fill = [&](int64_t first_n, std::vector<Entry>& table) {
    std::vector<int64_t> drawn(numerators_.size(), 0);
    table.reserve(static_cast<size_t>(period_));
    for (int64_t n = 0; n < period_; ++n) {
      // Lags are taken times M and relative to the start of the period, where all of them are zero.
      const int64_t at = std::max(n, first_n);
      size_t best = 0;
      int64_t largest = numerators_[0] * at - drawn[0] * period_;
      for (size_t i = 1; i < numerators_.size(); ++i) {
        const int64_t lag = numerators_[i] * at - drawn[i] * period_;
        if (lag > largest) {
          largest = lag;
          best = i;
        }
      }
      table.push_back({static_cast<int32_t>(best), static_cast<int32_t>(drawn[best]++)});
    }
  };
  fill(1, first_);
  fill(0, later_);
}

int64_t Blend::Split::before(int64_t k) const {
  using Wide = unsigned __int128;
  const Wide twice = 2 * static_cast<Wide>(numerator) * static_cast<Wide>(k) + static_cast<Wide>(sum);
  return static_cast<int64_t>(twice / (2 * static_cast<Wide>(sum)));
}

Blend::Draw Blend::operator()(int64_t sample) const {
  TRANSXSSM_CHECK(sample >= 0, "sample {}", sample);
  if (period_ > 0) {
    const int64_t turn = sample / period_;
    const Entry entry = (turn == 0 ? first_ : later_)[static_cast<size_t>(sample % period_)];
    return {entry.source, turn * numerators_[static_cast<size_t>(entry.source)] + entry.index};
  }
  int64_t k = sample;  // among the samples left to this source and those after it
  for (const Split& split : splits_) {
    const int64_t before = split.before(k);
    if (split.before(k + 1) > before) return {split.source, before};
    k -= before;
  }
  check_failed(__FILE__, __LINE__, "the last source takes all that is left", std::to_string(sample));
}

std::vector<int64_t> Blend::counts(int64_t n) const {
  std::vector<int64_t> counts(numerators_.size(), 0);
  if (period_ > 0) {
    const int64_t turns = n / period_;
    for (size_t i = 0; i < counts.size(); ++i) counts[i] = turns * numerators_[i];
    const std::vector<Entry>& table = turns == 0 ? first_ : later_;
    for (int64_t k = 0; k < n % period_; ++k)
      ++counts[static_cast<size_t>(table[static_cast<size_t>(k)].source)];
    return counts;
  }
  for (const Split& split : splits_) {
    const int64_t before = split.before(n);
    counts[static_cast<size_t>(split.source)] = before;
    n -= before;
  }
  return counts;
}

double Blend::share(int source) const {
  return static_cast<double>(numerators_[static_cast<size_t>(source)]) / static_cast<double>(sum_);
}

}  // namespace transxssm
