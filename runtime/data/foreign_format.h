// Files that are no text, told by their first bytes whatever their name, and what to do with them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace transxssm {

inline constexpr size_t kForeignHeadBytes = 512;

// DataError naming the file, what it is and the cure, where content that begins with `head` (the first
// kForeignHeadBytes of it, or all) is another compression, an archive, a table, or text in UTF-16 or UTF-32.
// `decompressed`: the head came out of gzip or zstd, so more of either is refused too.
void refuse_foreign_format(std::string_view head, const std::string& path, bool decompressed);

}  // namespace transxssm
