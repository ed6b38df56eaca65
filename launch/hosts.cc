#include "launch/hosts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace transxssm {
namespace {

constexpr size_t kNamed = 8;

// "ranks 0-3, 8"
std::string ranges(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    text += i > 0 ? ", " : "";
    text += last == i ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace

std::string describe_hosts(const std::vector<std::string>& host_of_rank) {
  std::vector<std::pair<std::string, std::vector<int>>> hosts;  // in the order of their first ranks
  for (size_t rank = 0; rank < host_of_rank.size(); ++rank) {
    const auto at = std::find_if(hosts.begin(), hosts.end(),
                                 [&](const auto& h) { return h.first == host_of_rank[rank]; });
    (at != hosts.end() ? *at : hosts.emplace_back(host_of_rank[rank], std::vector<int>()))
        .second.push_back(static_cast<int>(rank));
  }
  if (hosts.size() == 1) return "host " + hosts.front().first;
  std::string text = fmt::format("{} hosts: ", hosts.size());
  for (size_t i = 0; i < std::min(kNamed, hosts.size()); ++i)
    text += fmt::format("{}{} ({})", i > 0 ? ", " : "", hosts[i].first, ranges(hosts[i].second));
  if (hosts.size() > kNamed) text += fmt::format(" and {} more", hosts.size() - kNamed);
  return text;
}

}  // namespace transxssm
