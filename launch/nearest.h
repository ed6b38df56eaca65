// "Did you mean ...": the closest known name to one that is not known.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

// Number of inserted, removed, replaced and swapped neighbouring letters between two names.
int edit_distance(std::string_view a, std::string_view b);

// The candidate nearest to `name` within distance 2 (and less than the length of the name), else "".
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

// "; did you mean NAME?" or "".
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

// Comma-separated.
std::string join(const std::vector<std::string>& names);

}  // namespace transxssm
