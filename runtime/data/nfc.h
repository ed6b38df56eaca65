// Unicode normalization form C, as Hugging Face `tokenizers` computes it.
#pragma once

#include <string>
#include <string_view>

namespace transxssm {

// NFC of valid UTF-8. Returns `text` itself where nothing changes, else a view of `buffer`, which is
// overwritten.
std::string_view nfc(std::string_view text, std::string& buffer);

}  // namespace transxssm
