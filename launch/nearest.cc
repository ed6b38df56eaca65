#include "launch/nearest.h"

#include <algorithm>
#include <cstddef>

namespace transxssm {

int edit_distance(std::string_view a, std::string_view b) {
  // Rows i-2, i-1 and i of the table of the optimal string alignment distance.
  std::vector<int> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1] ? 1 : 0)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  // Among equally near names the one with the longer common beginning.
  std::string best;
  int best_distance = 2;
  ptrdiff_t best_prefix = -1;
  for (const std::string& candidate : candidates) {
    // No nearer than their lengths: the table is not made for a name of a megabyte.
    if (std::max(name.size(), candidate.size()) - std::min(name.size(), candidate.size()) > 2) continue;
    const int distance = edit_distance(name, candidate);
    const ptrdiff_t prefix =
        std::mismatch(name.begin(), name.end(), candidate.begin(), candidate.end()).first - name.begin();
    if (distance > best_distance || distance >= static_cast<int>(name.size())) continue;
    if (distance == best_distance && prefix <= best_prefix) continue;
    best = candidate;
    best_distance = distance;
    best_prefix = prefix;
  }
  return best;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates) {
  const std::string nearest = nearest_name(name, candidates);
  return nearest.empty() ? "" : "; did you mean " + nearest + "?";
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace transxssm
