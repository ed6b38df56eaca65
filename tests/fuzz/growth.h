// How the cost of a reader grows with its input.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <type_traits>

#include "tests/fuzz/fuzz.h"

namespace transxssm::fuzz {

// `n` pieces of text: the same, or piece(i).
template <class Piece>
std::string repeat(int n, const Piece& piece) {
  std::string text;
  for (int i = 0; i < n; ++i) {
    if constexpr (std::is_invocable_v<Piece, int>)
      text += piece(i);
    else
      text += piece;
  }
  return text;
}

// A shape of input that is made to hurt the reader of a target.
struct Reading {
  const char* name;
  const char* target;
  std::function<std::string(int)> input;  // of about n pieces
};

void PrintTo(const Reading& shape, std::ostream* out);

// Time and memory of the target for 4n pieces and for n.
class Growth : public testing::TestWithParam<Reading> {};

// Checks that work(4n) costs less than six times work(n), for an n that takes long enough to measure. `bytes`
// is the length of an input of n pieces.
void expect_growth(const std::function<void(int)>& work, const std::function<size_t(int)>& bytes);

}  // namespace transxssm::fuzz
