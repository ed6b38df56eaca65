// tokenizer.json: parsed into a TokenizerSpec, and written back.
#pragma once

#include <string>
#include <string_view>

#include "runtime/data/tokenizer_spec.h"

namespace transxssm {

// `name` stands in messages. DataError with the JSON path of whatever is not supported or not consistent.
TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name);

std::string write_tokenizer_json(const TokenizerSpec& spec);

}  // namespace transxssm
