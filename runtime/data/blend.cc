#include "runtime/data/blend.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr int64_t kMaxPeriod = 1 << 16;

// Whole numbers in the ratio of the weights: exact where a common denominator up to kMaxPeriod exists.
std::vector<int64_t> whole_weights(const std::vector<double>& weights) {
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0) || !std::isfinite(weights[i]))
      throw UsageError("The weight of data source {} is {}; it must be a positive number.", i, weights[i]);
    sum += weights[i];
  }
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
  for (size_t i = 0; i < weights.size(); ++i)
    whole[i] = std::max<int64_t>(1, std::llround(weights[i] / sum * static_cast<double>(kMaxPeriod)));
  return whole;
}

}  // namespace

Blend::Blend(const std::vector<double>& weights) {
  if (weights.empty()) throw UsageError("There is no data source; give at least one.");
  numerators_ = whole_weights(weights);
  period_ = 0;
  for (const int64_t m : numerators_) period_ += m;

  const auto tabulate = [&](int64_t first_n, std::vector<Entry>& table) {
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
  tabulate(1, first_);
  tabulate(0, later_);
}

Blend::Draw Blend::operator()(int64_t sample) const {
  TRANSXSSM_CHECK(sample >= 0, "sample {}", sample);
  const int64_t turn = sample / period_;
  const Entry entry = (turn == 0 ? first_ : later_)[static_cast<size_t>(sample % period_)];
  return {entry.source, turn * numerators_[static_cast<size_t>(entry.source)] + entry.index};
}

}  // namespace transxssm
