// Dynamic programs over prefixes of the chain of units, O(units^2 stages).
#include <algorithm>
#include <limits>

#include "parallel/schedule.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Least total over cuts of the first j units into k stages, for all k <= p, where a stage [i, j) costs
// cost(i, j) and join adds it to the total of the stages before. Fills from[k][j], the last stage's first
// unit.
template <class Cost, class Join>
double cut(int units, int p, Cost&& cost, Join&& join, std::vector<std::vector<int>>& from) {
  std::vector<double> best(static_cast<size_t>(units) + 1, kInfinity);
  best[0] = 0;
  from.assign(static_cast<size_t>(p) + 1, std::vector<int>(static_cast<size_t>(units) + 1, -1));
  for (int k = 1; k <= p; ++k) {
    std::vector<double> next(best.size(), kInfinity);
    for (int j = k; j <= units; ++j) {
      for (int i = k - 1; i < j; ++i) {
        const double total = join(best[static_cast<size_t>(i)], cost(i, j));
        if (total < next[static_cast<size_t>(j)]) {
          next[static_cast<size_t>(j)] = total;
          from[static_cast<size_t>(k)][static_cast<size_t>(j)] = i;
        }
      }
    }
    best = next;
  }
  return best[static_cast<size_t>(units)];
}

}  // namespace

std::vector<int> cut_stages(std::span<const double> costs, int p) {
  const int units = static_cast<int>(costs.size());
  if (p < 1 || units < p) {
    throw UsageError(
        "{} sub-layers (embedding and head included) cannot be cut into {} pipeline stages: parallel.pp may "
        "be 1 to {}.",
        units, p, units);
  }
  std::vector<double> prefix(costs.size() + 1, 0);
  for (size_t i = 0; i < costs.size(); ++i) prefix[i + 1] = prefix[i] + costs[i];
  const auto sum = [&](int i, int j) {
    return prefix[static_cast<size_t>(j)] - prefix[static_cast<size_t>(i)];
  };

  std::vector<std::vector<int>> from;
  const double highest = cut(
      units, p, sum, [](double a, double b) { return std::max(a, b); }, from);
  const double limit = highest * (1 + 1e-9);  // sums of prefixes round
  cut(
      units, p, [&](int i, int j) { return sum(i, j) <= limit ? sum(i, j) * sum(i, j) : kInfinity; },
      [](double a, double b) { return a + b; }, from);

  std::vector<int> bounds(static_cast<size_t>(p) + 1, units);
  for (int k = p; k >= 1; --k) {
    bounds[static_cast<size_t>(k) - 1] =
        from[static_cast<size_t>(k)][static_cast<size_t>(bounds[static_cast<size_t>(k)])];
  }
  return bounds;
}

}  // namespace transxssm
