// Character classes as the regular expressions of tokenizers see them (Unicode 16).
#pragma once

#include <cstdint>

namespace transxssm {

enum class CharClass : uint8_t { other, letter, number, space, newline };  // newline: CR and LF alone

// One CharClass a code point, 0 to 0x10FFFF.
const CharClass* char_classes();

// False: the code point is stable under NFC whatever follows text before it. True: normalise it together with
// the character before it. Indexed by code point.
const bool* nfc_active();

}  // namespace transxssm
