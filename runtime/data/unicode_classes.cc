#include "runtime/data/unicode_classes.h"

#include <algorithm>
#include <span>
#include <vector>

namespace transxssm {
namespace {

struct CodeRange {
  uint32_t first, last;
};

#include "runtime/data/unicode_tables.inc"

constexpr size_t num_code_points = 0x110000;

// Flat tables are simplest and fast: a document touches few of their pages.
template <class T>
void fill(T* table, std::span<const CodeRange> ranges, T value) {
  for (CodeRange range : ranges) std::fill(table + range.first, table + range.last + 1, value);
}

}  // namespace

const CharClass* char_classes() {
  static const std::vector<CharClass> table = [] {
    std::vector<CharClass> classes(num_code_points, CharClass::other);
    fill(classes.data(), letter_ranges, CharClass::letter);
    fill(classes.data(), number_ranges, CharClass::number);
    fill(classes.data(), space_ranges, CharClass::space);
    classes['\r'] = classes['\n'] = CharClass::newline;
    return classes;
  }();
  return table.data();
}

const bool* nfc_active() {
  static bool table[num_code_points];
  static const bool filled = (fill(table, nfc_active_ranges, true), true);
  (void)filled;
  return table;
}

}  // namespace transxssm
