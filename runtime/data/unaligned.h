// Numbers of mapped files, which lie at any address.
#pragma once

#include <cstddef>
#include <cstring>

namespace transxssm {

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace transxssm
